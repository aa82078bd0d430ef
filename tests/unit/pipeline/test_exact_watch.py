"""The watch of method exact: it changes nothing by looking, moves the divergence, ends practice."""

import json
import logging
import math

import pytest
import torch
from safetensors.torch import load_file

from pipeline import exact_trainer
from pipeline.exact import refine_exact
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.recipe import StudentOptions
from pipeline.records import Problem
from pipeline.run import Context
from serve.errors import TrainingDiverged
from tests.unit.pipeline.tiny import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
STUDENT = StudentOptions(model="path:unused", system="s")
# Two updates a block.
OPTIONS = OnPolicyOptions(
    blocks=4,
    block_attempts=4,
    batch_lessons=2,
    max_tokens=12,
    temperature=1.0,
    learning_rate=1e-3,
    checkpoint_blocks=1,
    watch_blocks=1,
    watch_samples=2,
)
PROBLEMS, HELD_OUT = (
    [Problem(question=f"{i} + {n} =", answer=str(i + n), family="f") for i in range(4)]
    for n in (1, 2)
)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("student"), 0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    # Padded further than the student: what is kept is cut as the one that is trained.
    return checkpoint(tmp_path_factory.mktemp("teacher"), 1, 128, width=64)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.fixture
def after_blocks(monkeypatch):
    """The trained head after every block."""
    seen = []

    def tell(self, args, state, control, model=None, **_):
        if state.global_step % 2 == 0:
            seen.append(model.lm_head.weight.detach().clone())

    monkeypatch.setattr(exact_trainer.Steps, "on_step_end", tell, raising=False)
    return seen


def advise(monkeypatch, looks_taken, advised, best):
    """Say `advised` once so many looks are there, when the best was number `best`."""
    monkeypatch.setattr(
        "pipeline.watching.advice",
        lambda looks, *_: advised if len(looks) == looks_taken else "go on",
    )
    monkeypatch.setattr("pipeline.watching.best_look", lambda looks: min(best, len(looks) - 1))


def refine(student, teacher, out, held_out=HELD_OUT, **options):
    out.mkdir(exist_ok=True)
    context = Context(seed=1, progress=Progress(), log=logging.getLogger("test"))
    chosen = OPTIONS.model_copy(update=options)
    return refine_exact(student, teacher, PROBLEMS, STUDENT, chosen, out, context, held_out)


def looks(out):
    return json.loads((out / "watch.json").read_text())


def head(out):
    return load_file(out / "model.safetensors")["lm_head.weight"]


def test_looks_are_taken_where_they_are_due_and_change_nothing(student, teacher, tmp_path):
    watched = refine(student, teacher, tmp_path / "watched", watch_blocks=3)
    alone = refine(student, teacher, tmp_path / "alone", held_out=())
    assert watched == alone
    assert looks(tmp_path / "alone") == []
    found = looks(tmp_path / "watched")
    assert [(look["blocks"], look["problems"], look["k"]) for look in found] == [
        (0.0, 4.0, 2.0),
        (3.0, 4.0, 2.0),
        (4.0, 4.0, 2.0),
    ]
    # Of a hundred tokens that are all alike to it: ln 100.
    assert found[0]["entropy_nats"] == pytest.approx(math.log(100), abs=0.2)
    assert not (tmp_path / "watched" / "scratch" / "checkpoints").exists()


def test_a_collapse_moves_the_divergence_of_what_follows(student, teacher, tmp_path, monkeypatch):
    advise(monkeypatch, 3, "shift", 0)
    rows = refine(student, teacher, tmp_path)
    assert [row["beta"] for row in rows] == [1.0] * 4 + [0.5] * 4


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_next_ends_practice_with_the_best_student(
    student, teacher, tmp_path, monkeypatch, after_blocks, best
):
    advise(monkeypatch, 3, "stop", best)
    rows = refine(student, teacher, tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [look["blocks"] for look in looks(tmp_path)] == [0.0, 1.0, 2.0]
    expected = [head(student), *after_blocks][best].to(torch.bfloat16)
    assert torch.equal(head(tmp_path), expected)
    assert (tmp_path / "tokenizer.json").exists()
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 100


def test_a_killed_training_ends_with_the_same_looks_and_weights(
    student, teacher, tmp_path, monkeypatch
):
    advise(monkeypatch, 2, "shift", 1)
    whole = refine(student, teacher, tmp_path / "whole")
    real = exact_trainer.ExactTrainer.training_step

    def killed(self, *arguments):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(exact_trainer.ExactTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            refine(student, teacher, tmp_path / "killed")
    assert (tmp_path / "killed/scratch/checkpoints/checkpoint-4/COMPLETE").exists()
    assert refine(student, teacher, tmp_path / "killed") == whole
    assert looks(tmp_path / "killed") == looks(tmp_path / "whole")
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "killed"))
    assert one == two


def test_the_student_before_broken_updates_is_kept(
    student, teacher, tmp_path, monkeypatch, after_blocks
):
    real = exact_trainer.ExactTrainer.compute_loss

    def broken(self, *arguments, **options):
        loss = real(self, *arguments, **options)
        return loss * (math.nan if self.state.global_step >= 2 else 1.0)

    monkeypatch.setattr(exact_trainer.ExactTrainer, "compute_loss", broken)
    out = tmp_path / "05-on-policy"
    with pytest.raises(TrainingDiverged) as caught:
        refine(student, teacher, out)
    assert "; the student before them: 05-on-policy/last-good" in str(caught.value)
    assert (caught.value.exit_code, caught.value.hint) == (6, "lower on_policy.learning_rate")
    assert torch.equal(head(out / "last-good"), after_blocks[0].to(torch.bfloat16))
    assert not (out / "model.safetensors").exists()

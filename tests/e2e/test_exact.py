"""Method exact with real models: the embedded student learns from its trained self.

Both have one vocabulary, so that the trained student of the smoke run can be the teacher.
"""

import json
import logging
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline import exact_trainer
from pipeline.exact import refine_exact
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.store import read_records
from pipeline.student import student_checkpoint
from serve.errors import DataError
from tests.e2e.proving import RECIPE

pytestmark = pytest.mark.slow
# Two updates a block; a checkpoint after the first block.
OPTIONS = OnPolicyOptions(
    blocks=2,
    block_attempts=4,
    batch_lessons=2,
    max_tokens=16,
    beta=0.5,
    temperature=0.7,
    checkpoint_blocks=1,
)


def refine(smoke, out, teacher=None):
    """The rows of a training of the embedded student, in `out`."""
    out.mkdir(exist_ok=True)
    problems = list(read_records(smoke.root / "01-problems" / "train.jsonl", Problem))
    return refine_exact(
        student_checkpoint(RECIPE.student),
        teacher or smoke.root / "04-sft",
        problems,
        RECIPE.student,
        OPTIONS,
        out,
        Context(seed=1, progress=Progress(), log=logging.getLogger("test")),
    )


@pytest.fixture(scope="module")
def whole(smoke, tmp_path_factory):
    out = tmp_path_factory.mktemp("exact") / "05-on-policy"
    return out, refine(smoke, out)


def test_every_update_has_its_row(whole):
    out, rows = whole
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert list(row) == [
            "step",
            "loss_nats",
            "learning_rate",
            "gradient_norm",
            "attempt_tokens",
            "learnt_tokens",
            "skipped_updates",
            "beta",
        ]
        assert (row["skipped_updates"], row["beta"]) == (0, 0.5)
        # The teacher was trained for a minute: both agree but for some tenths of a nat a token.
        assert 0.01 < row["loss_nats"] < 1.0
        assert math.isfinite(row["gradient_norm"])
        assert 2 <= row["attempt_tokens"] <= 32
    assert rows[0]["learning_rate"] == pytest.approx(5e-5, rel=1e-6)
    assert rows[0]["learning_rate"] > rows[-1]["learning_rate"] > 5e-6
    assert not (out / "scratch" / "checkpoints").exists()


def test_what_is_saved_is_a_trained_student(whole):
    out, _ = whole
    trained = AutoModelForCausalLM.from_pretrained(out)
    base = AutoModelForCausalLM.from_pretrained(student_checkpoint(RECIPE.student))
    assert trained.dtype == torch.bfloat16
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 49_152
    assert (out / "tokenizer.json").exists()
    moved = [
        float((a - b).detach().float().abs().max())
        for a, b in zip(trained.parameters(), base.parameters(), strict=True)
    ]
    # Four updates of at most the learning rate each, and the rounding to bfloat16.
    assert 0 < max(moved) < 0.05
    assert sum(m > 0 for m in moved) > 0.8 * len(moved)


def test_a_killed_training_goes_on_and_ends_the_same(smoke, whole, tmp_path, monkeypatch):
    out, rows = whole
    real = exact_trainer.ExactTrainer.training_step

    def killed(self, *arguments):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(exact_trainer.ExactTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            refine(smoke, tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "scratch" / "checkpoints" / "checkpoint-2"
    assert (checkpoint / "COMPLETE").exists()
    again = refine(smoke, tmp_path / "killed")
    for row, expected in zip(again, rows, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()


def test_padding_of_the_teacher_changes_nothing(smoke, whole, tmp_path):
    shutil.copytree(smoke.root / "04-sft", tmp_path / "padded")
    model = AutoModelForCausalLM.from_pretrained(smoke.root / "04-sft")
    model.resize_token_embeddings(49_152 + 128)
    with torch.no_grad():
        model.get_input_embeddings().weight[49_152:] = 3.0  # what would win if it took part
    model.save_pretrained(tmp_path / "padded")
    rows = refine(smoke, tmp_path / "out", tmp_path / "padded")
    for row, expected in zip(rows, whole[1], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_a_teacher_of_another_vocabulary_is_refused(smoke, tmp_path):
    shutil.copytree(smoke.root / "04-sft", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, two = (next(t for t, i in vocabulary.items() if i == index) for index in (300, 301))
    vocabulary[one], vocabulary[two] = 301, 300
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        refine(smoke, tmp_path / "out", tmp_path / "other")
    assert str(caught.value) == (
        f"the teacher's vocabulary is not the student's: token 300 is {one!r} for the student "
        f"and {two!r} for the teacher\n"
        'hint: another tokenizer needs on_policy.method = "aligned" or "span"'
    )
    assert caught.value.exit_code == 3

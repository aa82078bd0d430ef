"""Two processes over gloo train what one trains: the same losses, the same weights, resumable."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from pipeline.exact import refine_exact
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.recipe import SftOptions, StudentOptions
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.training_options import TrainingOptions
from serve.errors import RetortError, TrainingDiverged
from tests.processes import below
from tests.unit.pipeline.tiny import checkpoint, tokenizer
from tests.unit.pipeline.worked import read_losses, train_stage

STRATEGIES = ("ddp", "fsdp2", "zero3")
OPTIONS = SftOptions(
    epochs=2, batch_examples=4, learning_rate=1e-3, dtype="float32", checkpoint_steps=2
)
PRACTICE = OnPolicyOptions(
    blocks=2,
    block_attempts=8,
    batch_lessons=4,
    max_tokens=12,
    temperature=1.0,
    learning_rate=1e-3,
    checkpoint_blocks=1,
    watch_blocks=1,
    watch_samples=2,
)
PROBLEMS = [Problem(question=f"{i} + 1 =", answer=str(i + 1), family="f") for i in range(4)]
HELD_OUT = [Problem(question=f"{i} + 2 =", answer=str(i + 2), family="f") for i in range(3)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    # As the embedded student: one matrix for head and embedding.
    return checkpoint(tmp_path_factory.mktemp("tiny"), 0, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("teacher"), 1, width=64)


def context(strategy="none", **options) -> Context:
    processes = 1 if strategy == "none" else 2
    training = TrainingOptions(processes=processes, strategy=strategy, **options)
    return Context(1, Progress(), training=training)


def train(tiny, out, chosen: Context, **options):
    """The losses and the weights that stage 04 ends with."""
    train_stage(tiny, out, OPTIONS.model_copy(update=options), chosen)
    return read_losses(out), load_file(out / "model.safetensors")


def assert_same(found, expected, atol=1e-5):
    losses, weights = found
    assert losses == pytest.approx(expected[0], abs=1e-5)
    assert weights.keys() == expected[1].keys()
    for name, value in weights.items():
        # Saved in bfloat16: a last digit may round the other way.
        torch.testing.assert_close(value.float(), expected[1][name].float(), rtol=1e-2, atol=atol)


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    return train(tiny, tmp_path_factory.mktemp("alone"), context())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_what_one_trains(tiny, alone, tmp_path, strategy):
    found = train(tiny, tmp_path, context(strategy))
    assert len(found[0]) == 6
    assert_same(found, alone)
    assert not (tmp_path / "scratch").exists()


def test_what_the_presets_of_gpus_combine_trains_what_one_process_trains(tiny, tmp_path):
    """Packed rows, one at a time, layers computed again, weights shared: `cluster.toml`."""
    packed = {"max_tokens": 168, "batch_examples": 2}
    alone = train(tiny, tmp_path / "alone", context(packing=True), **packed)
    together = {"packing": True, "device_examples": 1, "gradient_checkpointing": True}
    found = train(tiny, tmp_path / "spread", context("fsdp2", **together), **packed)
    assert len(found[0]) == 4
    assert_same(found, alone)


def test_a_batch_that_is_read_in_parts_changes_nothing(tiny, alone, tmp_path):
    assert_same(train(tiny, tmp_path, context("none", device_examples=2)), alone)


@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_a_killed_process_ends_all_and_the_training_goes_on(tiny, alone, tmp_path, strategy):
    chosen, run = context(strategy), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.sft.train_spread", killing(after=3))
        with pytest.raises(RetortError, match="training over 2 processes ended with exit code"):
            train(tiny, run, chosen)
    assert training_processes() == []
    kept = sorted(p.name for p in (run / "scratch" / "checkpoints").glob("checkpoint-*"))
    assert "checkpoint-2" in kept
    other = shutil.copytree(run, tmp_path / "other")
    assert_same(train(tiny, run, chosen), alone)
    # A training that is spread another way has no use for these checkpoints, and begins anew.
    assert_same(train(tiny, other, context()), alone)


def killing(after: int):
    """`train_spread`, one of whose processes is killed when so many steps are told."""
    from pipeline.spread import train_spread

    def run(job, on_step):
        def told(step, loss):
            on_step(step, loss)
            if step == after:
                os.kill(training_processes()[-1].pid, signal.SIGKILL)

        return train_spread(job, told)

    return run


def training_processes():
    """Of this test: launchers and those that train."""
    launchers = [p.pid for p in below("accelerate.commands.launch")]
    return [p for p in below("pipeline.training_process") if p.pid not in launchers]


@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_adapters_are_merged_whoever_held_them(tiny, tmp_path, strategy):
    wish = {"method": "lora", "lora_rank": 4, "learning_rate": 1e-2}
    one = train(tiny, tmp_path / "one", context(), **wish)
    two = train(tiny, tmp_path / "two", context(strategy), **wish)
    assert_same(two, one)
    assert one[0][-1] < one[0][0]


def test_a_loss_that_is_no_number_ends_all_processes_with_its_own_error(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.lm_head.weight[5] = math.inf
    model.save_pretrained(broken)
    tokenizer().save_pretrained(broken)
    with pytest.raises(TrainingDiverged, match=r"loss nan, gradient norm .* at step 1") as caught:
        train(broken, tmp_path / "out", context("ddp"))
    assert (caught.value.exit_code, caught.value.hint) == (6, "lower sft.learning_rate")


@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_practice_is_shared_out_too(tiny, teacher, tmp_path, strategy, monkeypatch):
    # One process would train in bfloat16 where that is fast; what is shared out never does on CPUs.
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    student = StudentOptions(model="path:unused", system="s")
    rows = {}
    for name in ("none", strategy):
        out = tmp_path / name
        out.mkdir()
        rows[name] = refine_exact(
            tiny, teacher, PROBLEMS, student, PRACTICE, out, context(name), HELD_OUT
        )
    for one, two in zip(rows["none"], rows[strategy], strict=True):
        assert two["attempt_tokens"] == one["attempt_tokens"]
        assert two["loss_nats"] == pytest.approx(one["loss_nats"], abs=1e-5)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
    looks, others = (json.loads((tmp_path / name / "watch.json").read_text()) for name in rows)
    assert [look["blocks"] for look in looks] == [0.0, 1.0, 2.0]
    for look, other in zip(looks, others, strict=True):
        assert look == pytest.approx(other, abs=1e-4)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in rows)
    for key, value in one.items():
        torch.testing.assert_close(two[key].float(), value.float(), rtol=1e-2, atol=1e-5)

"""On a GPU: training, practice and answers with tiny models, beside the same on the processor."""

import math
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file

from pipeline.exact import refine_exact
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.recipe import SftOptions, StudentOptions
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.sft_trainer import build_trainer
from pipeline.training_options import TrainingOptions
from serve.engines import load_engine
from serve.engines.child import load_in_child
from serve.messages import Message, Request, Sampling
from tests.unit.pipeline.tiny import checkpoint, tokenizer
from tests.unit.pipeline.worked import practised_examples, read_losses, train_stage

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

OPTIONS = SftOptions(epochs=4, batch_examples=4, learning_rate=3e-3, checkpoint_steps=4)
STUDENT = StudentOptions(model="path:unused", system="s")
PROBLEMS = [Problem(question=f"{i} + 1 =", answer=str(i + 1), family="f") for i in range(8)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("tiny"), 0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("teacher"), 1, width=64)


def build(tiny, scratch, training=None, **options):
    chosen = OPTIONS.model_copy(update=options)
    plan = training or TrainingOptions()
    return build_trainer(tiny, tokenizer(), practised_examples(), chosen, scratch, 1, plan)


@pytest.mark.parametrize("again", [True, False])
def test_a_student_learns_and_goes_on_from_a_checkpoint(tiny, tmp_path, again):
    plan = TrainingOptions(gradient_checkpointing=again)
    training = build(tiny, tmp_path / "a", plan)
    rows = training.run(None)
    assert rows[-1]["loss_nats"] < rows[0]["loss_nats"] - 0.5
    assert next(training.trainer.model.parameters()).device.type == "cuda"
    resumed = build(tiny, tmp_path / "b", plan)
    later = resumed.run(tmp_path / "a" / "checkpoint-8")
    for one, two in zip(rows, later, strict=True):
        assert two["loss_nats"] == pytest.approx(one["loss_nats"], abs=1e-3)
    training.save(tmp_path / "student")
    assert load_file(tmp_path / "student" / "model.safetensors")


def test_adapters_and_packed_rows_train(tiny, tmp_path):
    adapted = build(tiny, tmp_path / "a", method="lora", lora_rank=4, learning_rate=1e-2)
    rows = adapted.run(None)
    assert rows[-1]["loss_nats"] < rows[0]["loss_nats"]
    adapted.save(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    packed = build(tiny, tmp_path / "b", TrainingOptions(packing=True, device_examples=1))
    rows = packed.run(None)
    assert len(rows) == packed.planned_steps()
    assert all(math.isfinite(row["loss_nats"]) for row in rows)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_training_of_its_own_process_is_that_of_this_one(tiny, tmp_path, strategy):
    plans = {"here": TrainingOptions(), "there": TrainingOptions(strategy=strategy)}
    found = {}
    for name, plan in plans.items():
        train_stage(tiny, tmp_path / name, OPTIONS, Context(1, Progress(), training=plan))
        found[name] = read_losses(tmp_path / name)
    # FSDP2 tells its losses in bfloat16.
    assert found["there"] == pytest.approx(found["here"], abs=0.1 if strategy == "fsdp2" else 0.02)


@pytest.mark.parametrize("training", [TrainingOptions(), TrainingOptions(strategy="fsdp2")])
def test_exact_practice_comes_closer(tiny, teacher, tmp_path, training):
    options = OnPolicyOptions(
        blocks=10, block_attempts=8, batch_lessons=8, max_tokens=12, learning_rate=3e-3
    )
    context = Context(1, Progress(), training=training)
    rows = refine_exact(tiny, teacher, PROBLEMS, STUDENT, options, tmp_path, context)
    assert len(rows) == 10
    assert rows[-1]["loss_nats"] < rows[0]["loss_nats"]
    assert load_file(tmp_path / "model.safetensors")


def test_answers_and_grades_are_those_of_the_processor(tiny, monkeypatch):
    messages = (Message(role="user", content="3 + 1 ="),)
    asked = [
        Request(key=str(i), messages=messages, sampling=Sampling(max_tokens=8), begun="4" * i)
        for i in range(3)
    ]
    with closing(load_in_child("transformers", path=tiny, dtype="float32")) as there:
        gpu_answers, gpu_grades = dict(there.generate(asked)), there.grade(asked[1:], 5)
    monkeypatch.setattr("serve.engines.transformers.has_cuda", lambda: False)
    with closing(load_engine("transformers", path=tiny, dtype="float32")) as here:
        answers, grades = dict(here.generate(asked)), here.grade(asked[1:], 5)
    assert {k: c.ids for k, c in gpu_answers.items()} == {k: c.ids for k, c in answers.items()}
    for one, two in zip(gpu_grades, grades, strict=True):
        assert one.scores.logprobs_nats == pytest.approx(two.scores.logprobs_nats, abs=1e-3)
        assert one.end_nats == pytest.approx(two.end_nats, abs=1e-3)

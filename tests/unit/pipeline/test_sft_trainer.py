"""The trainer on a tiny random llama: the loss is TRL's, what is supervised, and what stops it."""

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTTrainer

from pipeline import sft
from pipeline.progress import Progress
from pipeline.recipe import SftOptions, StudentOptions
from pipeline.records import Example, Problem, Trace, Verdict
from pipeline.run import Context
from pipeline.sft_trainer import build_trainer
from pipeline.store import write_records
from pipeline.supervise import full_example
from serve.errors import DataError, TrainingDiverged
from serve.messages import Completion
from tests.unit.pipeline.worked import read_losses, train_stage

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OPTIONS = SftOptions(epochs=2, batch_examples=4, learning_rate=1e-3, dtype="float32")
STUDENT = StudentOptions(model="path:unused", system="s")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    specials = ["<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<unk>"]
    letters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate(specials + letters)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials[1:4]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


def examples(count: int = 10) -> list[Example]:
    return [
        Example(
            key=str(i),
            family="f",
            prompt=({"role": "user", "content": f"{i} + 1 =" + " " * (i % 3)},),
            completion=f"<think>\n{i} + 1 = {i + 1}\n</think>\nAnswer: {i + 1}",
        )
        for i in range(count)
    ]


def build(student: Path, tmp_path: Path, options: SftOptions = OPTIONS, count: int = 10):
    return build_trainer(student, tokenizer_of(student), examples(count), options, tmp_path, 1)


def test_the_loss_on_supervised_rows_is_trl_s_own(student, tmp_path):
    trainer = build(student, tmp_path).trainer
    batch = next(iter(trainer.get_train_dataloader()))
    ours = trainer.compute_loss(trainer.model, dict(batch))
    theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert ours.item() == pytest.approx(math.log(100), abs=0.5)  # an untrained model guesses


def test_the_end_of_a_turn_becomes_the_end_of_the_student(student, tmp_path):
    """Base models of Qwen3 call another token their end than their template writes."""
    base = tmp_path / "base"
    shutil.copytree(student, base)
    tokenizer = tokenizer_of(base)
    tokenizer.eos_token = "<unk>"  # noqa: S105
    tokenizer.save_pretrained(base)
    training = build(base, tmp_path / "scratch")
    training.save(tmp_path / "taught")
    taught = tokenizer_of(tmp_path / "taught")
    assert taught.eos_token == "<|end|>"  # noqa: S105
    config = json.loads((tmp_path / "taught" / "config.json").read_text())
    ends = json.loads((tmp_path / "taught" / "generation_config.json").read_text())["eos_token_id"]
    assert config["eos_token_id"] == taught.eos_token_id
    assert taught.eos_token_id in (ends if isinstance(ends, list) else [ends])


def test_a_model_that_rescales_its_logits_gets_trl_s_loss(student, tmp_path):
    trainer = build(student, tmp_path).trainer
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.config.logit_scale = 2.0
    trainer.compute_loss(trainer.model, dict(batch))
    assert trainer._workspace._buffers == {}
    trainer.model.config.logit_scale = 1.0
    trainer.compute_loss(trainer.model, dict(batch))
    assert sorted(trainer._workspace._buffers) == ["logits", "part", "product", "weight"]


def test_packed_batches_give_the_gradients_of_padded_ones(student, tmp_path):
    trainer = build(student, tmp_path).trainer
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["attention_mask"] == 0).any()
    gradients = {}
    for attention in ("retort_packed", "eager"):
        trainer.model.set_attn_implementation(attention)
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        gradients[attention] = {n: p.grad.clone() for n, p in trainer.model.named_parameters()}
    for name, packed in gradients["retort_packed"].items():
        torch.testing.assert_close(packed, gradients["eager"][name], rtol=1e-4, atol=1e-6)


def test_no_weight_of_attention_is_kept_for_the_way_back(student, tmp_path):
    trainer = build(student, tmp_path).trainer
    batch = next(iter(trainer.get_train_dataloader()))
    width = batch["input_ids"].shape[1]
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (shapes.append(tensor.shape), tensor)[1], lambda tensor: tensor
    ):
        trainer.compute_loss(trainer.model, dict(batch)).backward()
    assert len(shapes) > 50
    assert [shape for shape in shapes if shape[-2:] == (width, width)] == []


def test_the_heap_is_given_back_every_sixteen_steps(student, tmp_path, monkeypatch):
    steps = []
    training = build(student, tmp_path, OPTIONS.model_copy(update={"epochs": 12}))
    monkeypatch.setattr(
        "pipeline.training_steps.give_back_memory",
        lambda: steps.append(training.trainer.state.global_step),
    )
    training.run(None)
    assert steps == [16, 32]


def test_the_first_step_runs_twice_and_counts_once(student, tmp_path, caplog):
    trainer = build(student, tmp_path).trainer
    trainer.current_gradient_accumulation_steps = 1
    inputs = next(iter(trainer.get_train_dataloader()))
    once = trainer.training_step(trainer.model, dict(inputs))
    gradient = trainer.model.lm_head.weight.grad.clone()
    trainer.model.zero_grad()
    again = trainer.training_step(trainer.model, dict(inputs))
    assert once.item() == again.item()
    assert torch.equal(gradient, trainer.model.lm_head.weight.grad)
    assert caplog.text == ""


def test_a_first_step_that_comes_out_differently_is_logged(student, tmp_path, caplog, monkeypatch):
    trainer = build(student, tmp_path).trainer
    trainer.current_gradient_accumulation_steps = 1
    inputs = next(iter(trainer.get_train_dataloader()))
    real, calls = trainer.compute_loss, []

    def wrong_once(*arguments, **options):
        calls.append(1)
        return real(*arguments, **options) * (1.01 if len(calls) == 1 else 1.0)

    monkeypatch.setattr(trainer, "compute_loss", wrong_once)
    logging.getLogger("retort").propagate = True
    loss = trainer.training_step(trainer.model, dict(inputs))
    assert loss.item() == real(trainer.model, dict(inputs)).item()
    assert "the first step gave" in caplog.text


def test_only_the_completion_is_supervised(student, tmp_path):
    trainer = build(student, tmp_path).trainer
    tokenizer = tokenizer_of(student)
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = tokenizer.decode(labels[labels != -100], skip_special_tokens=False)
        assert text.replace(" ", "").startswith("<think>")
        assert text.replace(" ", "").endswith("<|end|>")
        assert len(ids) % 16 == 0


def test_training_twice_gives_the_same_losses(student, tmp_path):
    first = build(student, tmp_path / "a").run(None)
    second = build(student, tmp_path / "b").run(None)
    assert first == second
    assert [row["step"] for row in first] == [1, 2, 3, 4, 5, 6]
    assert first[-1]["loss_nats"] < first[0]["loss_nats"]


def test_a_resumed_training_ends_with_the_same_weights(student, tmp_path):
    options = OPTIONS.model_copy(update={"checkpoint_steps": 2})
    whole = build(student, tmp_path / "a", options)
    losses = whole.run(None)
    whole.save(tmp_path / "whole")
    resumed = build(student, tmp_path / "b", options)
    assert resumed.run(tmp_path / "a" / "checkpoint-4") == losses
    resumed.save(tmp_path / "resumed")
    one, two = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")
    )
    assert one == two


def test_what_other_settings_left_unfinished_is_not_resumed(student, tmp_path, monkeypatch):
    slow = OPTIONS.model_copy(update={"checkpoint_steps": 2})
    fast = slow.model_copy(update={"learning_rate": 3e-3})
    context = Context(1, Progress())
    train_stage(student, tmp_path / "fresh", fast, context)
    killed = tmp_path / "killed"
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.sft.shutil.rmtree", lambda *_, **__: None)
        train_stage(student, killed, slow, context)
    assert (killed / "scratch" / "checkpoints" / "checkpoint-4" / "COMPLETE").exists()
    rarely = slow.model_copy(update={"checkpoint_steps": 3})
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.sft.shutil.rmtree", lambda *_, **__: None)
        seen = []
        patched.setattr("pipeline.sft.steps_done", lambda found: seen.append(found.name) or 0)
        train_stage(student, killed, rarely, context)
        assert seen == ["checkpoint-4"]  # how often it is kept changes nothing
    train_stage(student, killed, fast, context)
    assert read_losses(killed) == read_losses(tmp_path / "fresh")
    one, two = ((f / "model.safetensors").read_bytes() for f in (killed, tmp_path / "fresh"))
    assert one == two


def test_a_loss_that_is_not_a_number_stops_the_run(student, tmp_path):
    training = build(student, tmp_path)
    with torch.no_grad():
        next(training.trainer.model.parameters())[0] = math.nan
        training.trainer.model.lm_head.weight[5] = math.inf
    with pytest.raises(TrainingDiverged, match="loss nan, gradient norm nan at step 1") as caught:
        training.run(None)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(("method", "layer"), [("lora", "Linear"), ("qlora", "Linear4bit")])
def test_adapters_train_and_save_a_plain_checkpoint(method, layer, student, tmp_path):
    options = OPTIONS.model_copy(update={"method": method, "lora_rank": 4, "learning_rate": 1e-2})
    training = build(student, tmp_path / "run", options)
    trained = training.trainer.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    assert type(trained.base_layer).__name__ == layer
    losses = training.run(None)
    training.save(tmp_path / "merged")
    assert losses[-1]["loss_nats"] < losses[0]["loss_nats"]
    names = json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"]
    assert names == ["LlamaForCausalLM"]
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    # Added to the base's own weights, not to their copy of four bits.
    before, after = (_up_projection(folder) for folder in (student, tmp_path / "merged"))
    singular = torch.linalg.svdvals((after - before).double())
    assert singular[3] > 0.1
    assert singular[4] < 1e-3  # rounded to bfloat16


def _up_projection(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()


def trace(index: int, text: str) -> Trace:
    return Trace(
        key=str(index),
        problem=Problem(question=f"{index} + 1 =", answer=str(index + 1), family="f"),
        sample=0,
        model="m",
        prompt_sha256="p",
        completion=Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=9),
        verdict=Verdict(passed=True, reason="correct", extracted=str(index + 1), verifier="v"),
    )


def run_stage(student: Path, tmp_path: Path, traces: list[Trace], **options):
    examples = [full_example(trace, STUDENT) for trace in traces]
    write_records(tmp_path / "03" / "examples.jsonl", examples)
    out = tmp_path / "04"
    out.mkdir(exist_ok=True)
    config = (
        STUDENT.model_copy(update={"model": f"path:{student}"}),
        OPTIONS.model_copy(update=options),
    )
    context = Context(seed=1, progress=Progress(), log=logging.getLogger("test"))
    return sft.run(config, {"04-examples": tmp_path / "03"}, out, context)


def test_traces_that_do_not_fit_are_dropped_and_counted_never_cut(student, tmp_path):
    short = [trace(i, f"{i} + 1 = {i + 1}\nAnswer: {i + 1}") for i in range(6)]
    long = trace(9, "9 + 1 = 10, " * 40 + "so\nAnswer: 10")
    counts = run_stage(student, tmp_path, [*short, long], max_tokens=128)
    assert (counts["examples"], counts["dropped_too_long"]) == (6, 1)
    kept = (tmp_path / "04" / "examples.jsonl").read_text()
    assert kept.count("\n") == 6
    assert "so" not in kept
    assert not (tmp_path / "04" / "scratch").exists()


def test_nothing_to_train_on_is_an_error(student, tmp_path):
    with pytest.raises(DataError, match="no example to train on: 1 made, 1 over 16 tokens"):
        run_stage(student, tmp_path, [trace(1, "1 + 1 = 2\nAnswer: 2")], max_tokens=16)

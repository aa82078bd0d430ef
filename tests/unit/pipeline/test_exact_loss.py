"""Method exact on tiny random models: the loss is TRL's, padding is no token, a resume is whole."""

import itertools
import logging
import math

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM
from trl import DistillationTrainer
from trl.experimental.gkd import GKDTrainer

from pipeline import exact_loss, exact_trainer
from pipeline.exact import Exact, Materials, exact_job, refine_exact
from pipeline.exact_loss import Side, summed_divergence
from pipeline.head_loss import Workspace
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.recipe import StudentOptions
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.token_rows import (
    compare_vocabularies,
    cut_padding,
    give_back_padding,
    token_weights,
)
from pipeline.training_options import TrainingOptions
from serve.errors import DataError, TrainingDiverged
from tests.unit.pipeline.tiny import LETTERS, SHAPE, checkpoint, tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
STUDENT = StudentOptions(model="path:unused", system="s")
OPTIONS = OnPolicyOptions(
    blocks=2,
    block_attempts=5,
    batch_lessons=3,
    max_tokens=12,
    temperature=1.0,
    learning_rate=1e-3,
    checkpoint_blocks=1,
)
ONE_PROCESS = TrainingOptions()
PROBLEMS = [
    Problem(question=f"{i} + 1 =" + " " * (i % 3), answer=str(i + 1), family="f") for i in range(4)
]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("student"), 0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("teacher"), 1, width=64)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setattr("serve.hardware.has_fast_bfloat16", lambda: False)
    monkeypatch.setattr(exact_trainer, "has_fast_bfloat16", lambda: False)


def build(student, teacher, scratch, training=ONE_PROCESS, **options):
    chosen = OPTIONS.model_copy(update=options)

    def say(step, loss):
        pass

    materials = Materials(PROBLEMS)
    job = exact_job(student, teacher, materials, STUDENT, chosen, scratch, 1)
    return Exact(job.model_copy(update={"training": training}), say)


def refine(student, teacher, out, **options):
    out.mkdir(exist_ok=True)
    context = Context(seed=1, progress=Progress(), log=logging.getLogger("test"))
    chosen = OPTIONS.model_copy(update=options)
    return refine_exact(student, teacher, PROBLEMS, STUDENT, chosen, out, context)


def sides(rows, seed=1):
    torch.manual_seed(seed)
    student = Side(torch.randn(50, 8, requires_grad=True), torch.randn(rows, 8, requires_grad=True))
    return student, Side(torch.randn(50, 12), torch.randn(rows, 12))


@pytest.mark.parametrize("rows", [1, exact_loss.HEAD_ROWS, 2 * exact_loss.HEAD_ROWS + 3])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_in_parts_is_trl_s_formula_at_once(beta, rows):
    student, teacher = sides(rows)
    at_once = GKDTrainer.generalized_jsd_loss(
        student.hidden_SE @ student.weight_VE.t(),
        teacher.hidden_SE @ teacher.weight_VE.t(),
        beta=beta,
        reduction="sum",
    )
    expected = torch.autograd.grad(3 * at_once, student)
    in_parts = summed_divergence(student, teacher, beta, Workspace())
    found = torch.autograd.grad(3 * in_parts, student)
    torch.testing.assert_close(in_parts, at_once, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("beta", "nats"), [(0.0, 0.51083), (0.3, 0.09141), (1.0, 0.36806)])
def test_the_divergence_of_two_coins(beta, nats):
    # Student 0.9, 0.1; teacher 0.5, 0.5. Forward: 0.5 ln(0.5/0.9) + 0.5 ln(0.5/0.1) = 0.51083.
    # Between, m = 0.78, 0.22: 0.3 (0.5 ln(0.5/0.78) + 0.5 ln(0.5/0.22)) = 0.05644, and
    # 0.7 (0.9 ln(0.9/0.78) + 0.1 ln(0.1/0.22)) = 0.03496.
    student = Side(torch.tensor([[0.9], [0.1]]).log(), torch.ones(1, 1, requires_grad=True))
    teacher = Side(torch.tensor([[0.5], [0.5]]).log(), torch.ones(1, 1))
    loss = summed_divergence(student, teacher, beta, Workspace())
    assert loss.item() == pytest.approx(nats, abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_certain_and_opposed_models_give_finite_numbers(beta):
    student = Side(torch.eye(3).mul(500).requires_grad_(), torch.eye(3)[:1].requires_grad_())
    teacher = Side(torch.eye(3).mul(500), torch.eye(3)[1:2])
    loss = summed_divergence(student, teacher, beta, Workspace())
    gradients = torch.autograd.grad(loss, student)
    mixed = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert loss.item() == pytest.approx({0.0: 500.0, 0.3: mixed, 1.0: 500.0}[beta], rel=1e-5)
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_model_that_already_agrees_has_nothing_to_learn(beta):
    student, _ = sides(5)
    same = Side(*(t.detach() for t in student))
    loss = summed_divergence(student, same, beta, Workspace())
    gradients = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert max(float(g.abs().max()) for g in gradients) < 1e-5


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_trainer_s_loss_and_gradients_are_trl_s_own(student, teacher, tmp_path, beta):
    trainer = build(student, teacher, tmp_path, beta=beta).trainer
    inputs = trainer._prepare_inputs([trainer.train_dataset[i] for i in range(3)])
    assert not inputs["prompt_mask"].all()
    found = {}
    for name, kind in (("ours", type(trainer)), ("theirs", DistillationTrainer)):
        trainer.model.set_attn_implementation("retort_packed" if name == "ours" else "eager")
        trainer.model.zero_grad()
        loss = kind.compute_loss(trainer, trainer.model, dict(inputs))
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters()}
        found[name] = (loss.item(), gradients)
    # TRL adds up logits minus their sum, which leaves 1e-6 of a divergence this small.
    assert found["ours"][0] == pytest.approx(found["theirs"][0], abs=1e-6)
    assert found["ours"][0] > 0.003
    for name, gradient in found["ours"][1].items():
        torch.testing.assert_close(gradient, found["theirs"][1][name], rtol=1e-3, atol=1e-6)


def test_only_answers_are_learnt_from_and_their_end_too(student, teacher, tmp_path):
    trainer = build(student, teacher, tmp_path, max_tokens=40).trainer
    inputs = trainer._prepare_inputs([trainer.train_dataset[i] for i in range(6)])
    attempts = exact_trainer.right_padded(inputs)
    for row in range(6):
        width = int(attempts.real_BT[row].sum())
        assert bool(attempts.real_BT[row, :width].all())
        text = trainer.processing_class.decode(attempts.ids_BT[row, :width])
        answer = attempts.ids_BT[row][attempts.answer_BT[row]].tolist()
        assert text.replace(" ", "").startswith("<|system|>s<|end|><|user|>")
        assert len(answer) == 40 or answer[-1] == 0
        assert 0 not in answer[:-1]
    assert trainer._attempt_tokens == int(attempts.answer_BT.sum())


def test_training_towards_a_teacher_comes_closer(student, teacher, tmp_path):
    rows = refine(student, teacher, tmp_path / "out", blocks=15, learning_rate=3e-3)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert list(rows[0]) == [
        "step",
        "loss_nats",
        "learning_rate",
        "gradient_norm",
        "attempt_tokens",
        "learnt_tokens",
        "skipped_updates",
        "beta",
    ]
    assert rows[-1]["loss_nats"] < 0.7 * rows[0]["loss_nats"]
    assert rows[0]["learning_rate"] == pytest.approx(3e-3, rel=0.01)
    assert rows[-1]["learning_rate"] == pytest.approx(3e-4, rel=0.1)
    assert all(0 < row["attempt_tokens"] <= 36 for row in rows)
    files = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files
    assert "README.md" not in files


@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(100, 128), (128, 100), (128, 112)])
def test_padding_changes_nothing(student, teacher, tmp_path, student_rows, teacher_rows):
    plain = refine(student, teacher, tmp_path / "plain")
    wide = checkpoint(tmp_path / "wide", 0, student_rows)
    other = checkpoint(tmp_path / "other", 1, teacher_rows, width=64)
    rows = refine(wide, other, tmp_path / "out")
    for row, expected in zip(rows, plain, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    trained = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    before = LlamaForCausalLM.from_pretrained(wide, dtype=torch.bfloat16)
    cut = 100  # tokens; what both have beyond is no token either
    assert trained.config.vocab_size == student_rows
    assert torch.equal(trained.lm_head.weight[cut:], before.lm_head.weight[cut:])
    assert not torch.equal(trained.lm_head.weight[:cut], before.lm_head.weight[:cut])


@pytest.mark.parametrize("tied", [True, False])
def test_cut_padding_comes_back(tied):
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=8, tie_word_embeddings=tied, **SHAPE)
    )
    before = [w.clone() for w in token_weights(model)]
    cut = cut_padding(model, 15)
    assert len(cut) == len(before) == (1 if tied else 2)
    assert {len(w) for w in token_weights(model)} == {15}
    give_back_padding(model, cut)
    for weight, expected in zip(token_weights(model), before, strict=True):
        assert torch.equal(weight, expected)


def test_another_vocabulary_is_refused_by_its_first_token():
    swapped = [*LETTERS[:7], LETTERS[8], LETTERS[7], *LETTERS[9:]]
    assert compare_vocabularies(tokenizer(), tokenizer()) == 100
    with pytest.raises(DataError, match="token 12 is \"'\" for the student and '\\(' for the"):
        compare_vocabularies(tokenizer(), tokenizer(swapped))
    with pytest.raises(DataError, match="token 100 is no token for the student and 'é' for the"):
        compare_vocabularies(tokenizer(), tokenizer([*LETTERS, "é"]))


def test_a_head_without_a_row_for_every_token_is_refused(student, tmp_path):
    low = checkpoint(tmp_path / "low", 1, 90)
    with pytest.raises(DataError, match=r"heads have 100 \(student\) and 90 \(teacher\) rows for"):
        build(student, low, tmp_path)


def test_nothing_to_practise_on_is_an_error(student, teacher, tmp_path):
    context = Context(seed=1, progress=Progress())
    with pytest.raises(DataError, match="no problem to practise on"):
        refine_exact(student, teacher, [], STUDENT, OPTIONS, tmp_path, context)


def test_a_killed_training_ends_with_the_same_weights(student, teacher, tmp_path, monkeypatch):
    whole = refine(student, teacher, tmp_path / "whole", blocks=3)
    real = exact_trainer.ExactTrainer.training_step

    def killed(self, *arguments):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(exact_trainer.ExactTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            refine(student, teacher, tmp_path / "killed", blocks=3)
    scratch = tmp_path / "killed" / "scratch" / "checkpoints"
    read = {"problems.jsonl", "held_out.jsonl", "examples.jsonl"}
    assert {p.name for p in scratch.iterdir()} == {"checkpoint-2"} | read
    (scratch / "checkpoint-3").mkdir()  # as if the kill had come while it was written
    assert refine(student, teacher, tmp_path / "killed", blocks=3) == whole
    one, two = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")
    )
    assert one == two
    assert not scratch.exists()


def test_broken_updates_are_skipped_and_the_third_in_a_row_ends_it(
    student, teacher, tmp_path, monkeypatch
):
    real = exact_trainer.ExactTrainer.compute_loss
    broken = {2, 4, 5, 6}

    def sometimes(self, *arguments, **options):
        loss = real(self, *arguments, **options)
        return loss * (math.nan if self.state.global_step + 1 in broken else 1.0)

    monkeypatch.setattr(exact_trainer.ExactTrainer, "compute_loss", sometimes)
    training = build(student, teacher, tmp_path, blocks=4)
    weights, seen = training.trainer.model.lm_head.weight, []
    monkeypatch.setattr(
        exact_trainer.Steps,
        "on_step_end",
        lambda *_, **__: seen.append(weights.detach().clone()),
    )
    with pytest.raises(TrainingDiverged, match="3 updates in a row skipped: loss nan") as caught:
        training.run(None)
    assert caught.value.exit_code == 6
    assert len(seen) == 5
    assert [torch.equal(a, b) for a, b in itertools.pairwise(seen)] == [
        True,
        False,
        True,
        True,
    ]
    assert bool(weights.isfinite().all())
    losses = [row["loss_nats"] for row in training.trainer.rows()]
    assert [loss is None for loss in losses] == [False, True, False, True, True]
    assert training.trainer.rows()[1]["gradient_norm"] is None


def test_a_model_that_rescales_its_logits_gets_trl_s_loss(student, teacher, tmp_path):
    tokenizer().save_pretrained(tmp_path / "gemma")
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=100, hidden_size=32, head_dim=8, **SHAPE)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    training = build(tmp_path / "gemma", teacher, tmp_path / "scratch")
    rows = training.run(None)
    assert training.trainer._workspace._buffers == {}
    assert [math.isfinite(row["loss_nats"]) for row in rows] == [True] * 4


def test_with_trl_s_own_loss_a_killed_training_still_ends_the_same(student, teacher, tmp_path):
    """What runs on CUDA, and where several processes train; a batch is read in two parts."""
    plan = TrainingOptions(device_examples=2)
    whole = build(student, teacher, tmp_path / "whole", training=plan, temperature=1.3)
    rows = whole.run(None)
    assert [math.isfinite(row["loss_nats"]) for row in rows] == [True] * 4
    assert all(4 <= row["attempt_tokens"] <= 48 for row in rows)
    assert whole.trainer.temperature == 1.0
    assert whole.trainer._workspace._buffers == {}
    resumed = build(student, teacher, tmp_path / "resumed", training=plan, temperature=1.3)
    assert resumed.run(tmp_path / "whole" / "checkpoint-2") == rows
    for one, two in zip(
        whole.trainer.model.parameters(), resumed.trainer.model.parameters(), strict=True
    ):
        assert torch.equal(one, two)


def test_a_batch_read_in_parts_is_the_batch(student, teacher, tmp_path):
    whole, parts = (
        build(
            student,
            teacher,
            tmp_path / str(n),
            training=TrainingOptions(device_examples=n),
            batch_lessons=4,
            block_attempts=4,
            blocks=1,
        )
        for n in (4, 1)
    )
    one, two = whole.run(None)[0], parts.run(None)[0]
    assert two["attempt_tokens"] == one["attempt_tokens"]
    assert two["loss_nats"] == pytest.approx(one["loss_nats"], rel=1e-4)
    assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)

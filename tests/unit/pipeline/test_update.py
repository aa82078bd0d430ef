"""One update: loss and gradients against plain torch, and what the guard lets through."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.divergence_loss import bucketed, divergence, surrogate
from pipeline.head_loss import Workspace
from pipeline.lesson import Advantage, Lesson, Target, batch_of, told
from pipeline.packing import PACKED
from pipeline.update import Guard, backward, token_logprobs, update
from serve.errors import TrainingDiverged


def tiny(packed):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    if packed:
        model.set_attn_implementation(PACKED)
    return model


LESSONS = [
    Lesson(
        (1, 2, 3, 4, 5, 6),
        targets=(Target(2, (3, 9), (0.7, 0.2)), Target(4, (5, 6, 7), (0.5, 0.25, 0.25), 1.0)),
        advantages=(Advantage(3, -1.5, -3.0), Advantage(5, 2.0, -4.5)),
    ),
    Lesson((8, 9, 10, 11), targets=(Target(3, (11,), (1.0,)), Target(2, (4, 10), (0.1, 0.8), 0.5))),
    told((12, 13, 14), 1),
]


def plain_loss(model):
    """The same lessons, one by one, written down as in the papers."""
    total, places = torch.zeros(()), 0
    for lesson in LESSONS:
        logprobs_TV = model(torch.tensor([lesson.ids])).logits[0].log_softmax(-1)
        for target in lesson.targets:
            q_V = logprobs_TV[target.at - 1]
            ids = list(target.ids)
            q = torch.cat([q_V[ids], (1 - q_V[ids].exp().sum()).clamp(min=1e-6).log()[None]])
            tail = max(1e-6, 1 - sum(target.shares))
            p = torch.tensor([*target.shares, tail]).log()
            beta = target.beta
            if beta == 0:
                total = total + (p.exp() * (p - q)).sum()
            elif beta == 1:
                total = total + (q.exp() * (q - p)).sum()
            else:
                m = (beta * p.exp() + (1 - beta) * q.exp()).log()
                total = total + beta * (p.exp() * (p - m)).sum()
                total = total + (1 - beta) * (q.exp() * (q - m)).sum()
        for one in lesson.advantages:
            ratio = (logprobs_TV[one.at - 1, lesson.ids[one.at]] - one.old_nats).exp()
            clipped = ratio.clamp(0.8, 1.2)
            total = total - torch.minimum(ratio * one.nats, clipped * one.nats)
        places += lesson.places
    return total / places


@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradients_are_those_of_the_formulas(packed, monkeypatch):
    monkeypatch.setattr("pipeline.update.has_fast_bfloat16", lambda: False)
    monkeypatch.setattr("pipeline.update.HEAD_ROWS", 3)
    plain = tiny(packed=False)
    expected = plain_loss(plain)
    expected.backward()
    model = tiny(packed)
    loss_nats = backward(model, batch_of(LESSONS, 0), 0.2, Workspace())
    # A listed token may have the share of the smallest bucket: equal up to that.
    assert loss_nats == pytest.approx(float(expected.detach()), abs=2e-5)
    for (name, mine), (_, theirs) in zip(
        model.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert torch.allclose(mine.grad, theirs.grad, atol=2e-6), name


def test_log_probabilities_of_tokens_are_the_models():
    model = tiny(packed=True)
    batch = batch_of([told((1, 2, 3, 4), 2), told((5, 6, 7), 1)], 0)
    expected = []
    for ids, first in (((1, 2, 3, 4), 2), ((5, 6, 7), 1)):
        logprobs_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected += [float(logprobs_TV[t - 1, ids[t]].detach()) for t in range(first, len(ids))]
    assert token_logprobs(model, batch).tolist() == pytest.approx(expected, abs=0.02)


def test_divergences_of_known_distributions():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    reverse = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    middle = [0.7, 0.3]
    between = 0.5 * sum(a * math.log(a / m) for a, m in zip((0.5, 0.5), middle, strict=True))
    between += 0.5 * sum(a * math.log(a / m) for a, m in zip((0.9, 0.1), middle, strict=True))
    for beta, expected in ((0.0, forward), (1.0, reverse), (0.5, between)):
        assert float(divergence(q, p, torch.tensor([beta]))) == pytest.approx(expected, abs=1e-6)


def test_the_rest_is_one_bucket_on_both_sides():
    logprobs = torch.tensor([[0.5, 0.3, 0.001]]).log()
    student, target = bucketed(logprobs, torch.tensor([[0.6, 0.1, 0.0]]))
    assert student.exp()[0].tolist() == pytest.approx([0.5, 0.3, 1e-6, 0.2], abs=1e-6)
    assert target.exp()[0].tolist() == pytest.approx([0.6, 0.1, 1e-6, 0.3], abs=1e-6)


def test_a_reused_sample_is_clipped():
    new, old = torch.tensor([0.0, 0.0]), torch.tensor([-1.0, 1.0])
    loss = surrogate(new, old, torch.tensor([1.0, -1.0]), 0.2)
    # Past the limit in the direction it was pushed: no more to gain.
    assert loss.tolist() == pytest.approx([-1.2, 0.8])


def test_the_guard_skips_counts_and_ends():
    guard = Guard()
    for norm in (1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.1):
        assert guard.allows(0.5, norm)
    assert not guard.allows(float("nan"), 1.0)
    assert not guard.allows(0.5, 1e3)
    assert guard.allows(0.5, 1.2)
    assert not guard.allows(0.5, float("inf"))
    assert guard.skipped == 3
    fresh = Guard()
    fresh.restore(guard.state())
    assert not fresh.allows(float("inf"), 1.0)
    with pytest.raises(
        TrainingDiverged, match="3 updates in a row skipped: loss nan nats"
    ) as raised:
        fresh.allows(float("nan"), 1.0)
    assert raised.value.exit_code == 6


def test_a_skipped_update_leaves_the_weights(monkeypatch):
    model = tiny(packed=True)
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    batch = batch_of(LESSONS, 0)
    bad = batch._replace(target_shares_PK=batch.target_shares_PK * float("nan"))
    assert update(model, optimizer, bad, Guard(), 0.2, Workspace()).taken is False
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert update(model, optimizer, batch, Guard(), 0.2, Workspace()).taken is True
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_layers_that_are_computed_again_give_the_same_gradients(packed):
    gradients = []
    for again in (False, True):
        model = tiny(packed).train()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        backward(model, batch_of(LESSONS, 0), 0.2, Workspace())
        gradients.append([p.grad.clone() for p in model.parameters()])
        assert model.is_gradient_checkpointing is again
    for kept, computed in zip(*gradients, strict=True):
        assert torch.equal(kept, computed)

"""The loss that never holds all logits: the value and both gradients of plain cross-entropy."""

import pytest
import torch
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.head_loss import HEAD_ROWS, Workspace, has_plain_head, summed_loss

TINY = {
    "vocab_size": 50,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}


@pytest.mark.parametrize("rows", [1, HEAD_ROWS, 2 * HEAD_ROWS + 3])
def test_the_loss_in_parts_is_the_loss_at_once(rows):
    torch.manual_seed(1)
    weight = torch.randn(50, 8, requires_grad=True)
    hidden = torch.randn(rows, 8, requires_grad=True)
    labels = torch.randint(0, 50, (rows,))
    at_once = functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    expected = torch.autograd.grad(3 * at_once, (weight, hidden))
    in_parts = summed_loss(weight, hidden, labels, Workspace())
    found = torch.autograd.grad(3 * in_parts, (weight, hidden))
    torch.testing.assert_close(in_parts, at_once, rtol=1e-5, atol=1e-3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_frozen_head_gets_no_gradient():
    hidden = torch.randn(3, 8, requires_grad=True)
    workspace = Workspace()
    summed_loss(torch.randn(50, 8), hidden, torch.tensor([1, 2, 3]), workspace).backward()
    assert hidden.grad.abs().sum() > 0
    assert "part" not in workspace._buffers


def test_bfloat16_products_stay_within_their_rounding():
    torch.manual_seed(1)
    weight = torch.randn(50, 64, requires_grad=True)
    hidden, labels = torch.randn(9, 64), torch.randint(0, 50, (9,))
    exact = functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    rounded = summed_loss(weight, hidden.bfloat16().requires_grad_(), labels, Workspace())
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)


def test_a_model_that_rescales_its_logits_is_left_to_its_own_loss():
    assert has_plain_head(LlamaForCausalLM(LlamaConfig(**TINY)))
    assert not has_plain_head(Gemma2ForCausalLM(Gemma2Config(**TINY, final_logit_softcapping=30.0)))

"""Norms that keep less: the same numbers, fewer bytes, and other kinds of norm left alone."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.lean_norm import lean_norm, use_lean_norms

TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def llama_norm(width: int = 16):
    norm = LlamaForCausalLM(LlamaConfig(**TINY)).model.norm
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, width))
    return norm


def test_values_and_gradients_are_those_of_the_plain_norm():
    torch.manual_seed(0)
    norm, x = llama_norm(), torch.randn(3, 5, 16, requires_grad=True)
    towards = torch.randn(3, 5, 16)
    expected = torch.autograd.grad((norm(x) * towards).sum(), [x, norm.weight])
    ours = lean_norm(x, norm.weight, norm.variance_epsilon)
    assert torch.equal(ours, norm(x))
    found = torch.autograd.grad((ours * towards).sum(), [x, norm.weight])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_under_autocast_products_read_what_they_would_have_cast():
    norm, x = llama_norm(), torch.linspace(-4, 4, 64).view(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = lean_norm(x, norm.weight, norm.variance_epsilon)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, norm(x).to(torch.bfloat16))


def kept_bytes(forward, x: torch.Tensor, head: torch.nn.Linear) -> int:
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        normal = forward(x)
        _ = [head(normal) for _ in range(3)]
    return sum(size for size, _ in kept.values())


def test_less_than_half_of_it_is_kept():
    norm, head = llama_norm(), torch.nn.Linear(16, 16, bias=False)
    x = torch.randn(256, 16, requires_grad=True)
    plain = kept_bytes(norm, x, head)
    assert use_lean_norms(norm) == 1
    assert kept_bytes(norm, x, head) < plain / 2


@pytest.mark.parametrize(
    ("model", "norms"),
    [
        (LlamaForCausalLM(LlamaConfig(**TINY)), 5),
        (Qwen3ForCausalLM(Qwen3Config(**TINY)), 9),
        (Gemma2ForCausalLM(Gemma2Config(**TINY)), 0),
    ],
    ids=["llama", "qwen3 with q and k norms", "gemma scales by 1 + weight"],
)
def test_norms_are_known_by_what_they_compute(model, norms):
    ids = torch.arange(12)[None]
    before = model(ids).logits
    assert use_lean_norms(model) == norms
    assert torch.equal(model(ids).logits, before)

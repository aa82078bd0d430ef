"""Batches without padding: which places stay."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pipeline.packing import TOKEN_MULTIPLE, kept_places, packs


def lengths(*counts: int, width: int) -> torch.Tensor:
    return torch.arange(width)[None] < torch.tensor(counts)[:, None]


def test_padding_fills_up_to_the_multiple_and_no_further():
    real = lengths(100, 60, 90, width=112)
    kept = kept_places(real)
    assert int(kept.sum()) == 2 * TOKEN_MULTIPLE
    assert bool((kept & real).sum() == real.sum())
    assert kept.sum(dim=1).tolist() == [106, 60, 90]


def test_a_batch_with_too_little_padding_keeps_all_of_it():
    assert kept_places(lengths(10, 12, width=16)).all()


def test_a_full_batch_of_a_fitting_size_keeps_nothing_else():
    real = lengths(64, 64, 0, width=64)
    assert torch.equal(kept_places(real), real)


def test_only_models_whose_layers_all_attend_to_everything_are_packed():
    tiny = {
        "vocab_size": 50,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    assert packs(LlamaForCausalLM(LlamaConfig(**tiny)))
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    assert not packs(Qwen3ForCausalLM(Qwen3Config(**tiny, **window)))

"""Grouped attention against torch's own, with fewer key heads than query heads."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from serve.engines.attention import GROUPED, attends_plainly, grouped_attention
from serve.engines.transformers import TransformersEngine
from tests.unit.pipeline.tiny import SHAPE, tokenizer


@pytest.mark.parametrize("queries", [1, 5])
def test_grouped_attention_is_torch_s_scaled_dot_product(queries):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 6, queries, 8, generator=generator)
    key = torch.randn(2, 2, 5, 8, generator=generator)
    value = torch.randn(2, 2, 5, 8, generator=generator)
    mask = torch.zeros(2, 1, queries, 5)
    mask[1, :, :, :2] = torch.finfo(torch.float32).min
    out, weights = grouped_attention(torch.nn.Identity().eval(), query, key, value, mask, 0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.5, enable_gqa=True
    )
    assert weights is None
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_scores_that_a_model_caps_stay_capped():
    config = Gemma2Config(
        vocab_size=100, hidden_size=32, head_dim=8, **SHAPE, attn_logit_softcapping=0.05
    )
    torch.manual_seed(1)
    model = Gemma2ForCausalLM(config).eval()
    assert not attends_plainly(model)
    ids = [7, 30, 31, 45, 60]
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    engine = TransformersEngine(model, tokenizer(), "gemma", 4, 64)
    assert engine.model.config._attn_implementation != GROUPED
    torch.testing.assert_close(torch.tensor(engine.logits(ids)), expected)


def test_a_plain_model_is_grouped():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, hidden_size=32, **SHAPE)).eval()
    assert attends_plainly(model)
    engine = TransformersEngine(model, tokenizer(), "llama", 4, 64)
    assert engine.model.config._attn_implementation == GROUPED

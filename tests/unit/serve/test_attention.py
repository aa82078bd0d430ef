"""Grouped attention against torch's own, with fewer key heads than query heads."""

import pytest
import torch

from serve.engines.attention import grouped_attention


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

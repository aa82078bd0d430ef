"""Packed layers say what plain ones say, of the weights as they are now."""

import pytest
import torch
from torch import nn

from serve.engines.packed_linear import MOST_ROWS, PackedLinear, pack

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="torch without FBGEMM"
)


def layer(bias: bool = False) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(96, 40, bias=bias)


def rounded(bias: bool = False) -> nn.Linear:
    """As read from a checkpoint in bfloat16."""
    found = layer(bias)
    found.weight.data = found.weight.data.bfloat16().float()
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 96), (2, 3, 96), (MOST_ROWS + 1, 96)])
@torch.inference_mode()
def test_weights_of_bfloat16_lose_nothing(shape, bias):
    plain, packed = rounded(bias), rounded(bias)
    pack(packed, exact=True)
    assert type(packed) is PackedLinear
    x = torch.randn(shape)
    torch.testing.assert_close(packed(x), plain(x), atol=2e-6, rtol=0)


def test_what_float16_cannot_hold_stays_plain_where_it_must_be_exact():
    kept, moved = layer(), layer()
    pack(kept, exact=True)
    pack(moved, exact=False)
    assert (type(kept), type(moved)) == (nn.Linear, PackedLinear)
    x = torch.randn(4, 96)
    with torch.inference_mode():
        error = (moved(x) - kept(x)).abs().max()
    assert 1e-6 < error < 1e-3


def test_a_changed_weight_is_packed_again():
    packed, x = rounded(), torch.randn(4, 96)
    pack(packed, exact=True)
    with torch.no_grad():
        before = packed(x)
        packed.weight.copy_(2 * packed.weight)
        torch.testing.assert_close(packed(x), 2 * before)


def test_training_goes_through_the_plain_product():
    packed = rounded()
    pack(packed, exact=True)
    packed(torch.ones(2, 96)).sum().backward()
    assert packed.weight.grad.eq(2).all()


def test_weights_of_bfloat16_stay_plain():
    kept = layer().bfloat16()
    pack(kept, exact=False)
    assert type(kept) is nn.Linear

"""Codes and grids, on blocks that llama.cpp's own quantizer wrote."""

import gguf
import numpy as np
import pytest

from quant.codes import LAYOUTS, read_codes, write_codes
from quant.gguf import Encoding, quantize
from quant.gguf_reader import values_of

NAME = "blk.0.ffn_down.weight"


def written(full_gguf, kind: str):
    values = np.random.default_rng(0).normal(size=(32, 512))
    values[3, :64] = 0
    full = full_gguf({NAME: values})
    target = full.with_name(f"{kind}.gguf")
    quantize(full, target, Encoding(file_type="Q8_0", overrides=((".*", kind),)), threads=1)
    (tensor,) = gguf.GGUFReader(target).tensors
    assert tensor.tensor_type.name == kind
    return tensor


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_codes_and_grids_give_the_values_that_the_file_holds(full_gguf, kind):
    tensor = written(full_gguf, kind)
    coded = read_codes(kind, tensor.data)
    assert coded.codes.shape == (32, 512)
    width = 512 // coded.scale.shape[1]
    scale, base = (np.repeat(x, width, axis=1) for x in (coded.scale, coded.base))
    assert np.array_equal(scale * coded.levels[coded.codes] + base, values_of(tensor))


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_other_codes_are_written_on_the_same_grids(full_gguf, kind):
    data = written(full_gguf, kind).data
    before = read_codes(kind, data)
    assert np.array_equal(write_codes(kind, data, before.codes), data)
    other = np.random.default_rng(1).integers(0, len(before.levels), before.codes.shape)
    after = read_codes(kind, write_codes(kind, data, other.astype(np.uint8)))
    assert np.array_equal(after.codes, other)
    assert np.array_equal(after.scale, before.scale)
    assert np.array_equal(after.base, before.base)
    assert np.array_equal(read_codes(kind, data).codes, before.codes)

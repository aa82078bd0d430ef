"""The small integers inside GGUF blocks: read with the grid that each stands on, and written back.

A weight is `scale * levels[code] + base`; scale and base belong to groups of 16 or 32 weights of a
row and stay as they are. Layouts: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
# Turns a signed byte into its rank, -128 being 0, and back.
SIGN = np.uint8(128)
# Pairs of bits, and single bits, that lie above each other in the same bytes.
SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]
PLANES = np.arange(8, dtype=np.uint8)[:, None]


class Coded(NamedTuple):
    """R rows of C weights in groups: `codes` (R, C); `scale` and `base` (R, C / group)."""

    codes: Bytes
    scale: Floats
    base: Floats
    levels: Floats


class Layout(NamedTuple):
    """How one tensor type lies in blocks (R, blocks, bytes)."""

    read: Callable[[Bytes], Coded]
    write: Callable[[Bytes, Bytes], None]


def read_codes(kind: str, data_RB: Bytes) -> Coded:
    """`data_RB`: the rows of a tensor as they lie in the file."""
    return LAYOUTS[kind].read(_blocks(kind, data_RB))


def write_codes(kind: str, data_RB: Bytes, codes_RC: Bytes) -> Bytes:
    """A copy of `data_RB` with other codes on the same grids."""
    data_RB = data_RB.copy()
    LAYOUTS[kind].write(_blocks(kind, data_RB), codes_RC)
    return data_RB


def _blocks(kind: str, data_RB: Bytes) -> Bytes:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return data_RB.reshape(len(data_RB), -1, size)


def _halves(blocks: Bytes, start: int) -> Floats:
    """The half-precision number at byte `start` of every block."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16).astype(np.float32)


def _narrow(has_base: bool, bits: int) -> Layout:
    """Q4_0, Q4_1, Q5_0, Q5_1: scale, base, fifth bits, then 16 bytes of low and high nibbles."""
    high_at = 4 if has_base else 2
    middle = float(2 ** (bits - 1))

    def read(blocks: Bytes) -> Coded:
        codes = _nibbles(blocks[..., -16:])
        if bits == 5:
            high = np.unpackbits(blocks[..., high_at : high_at + 4], axis=-1, bitorder="little")
            codes |= high << 4
        scale = _halves(blocks, 0)
        base = _halves(blocks, 2) if has_base else -middle * scale
        return _coded(codes, scale, base, np.arange(2**bits))

    def write(blocks: Bytes, codes_RC: Bytes) -> None:
        codes = codes_RC.reshape(*blocks.shape[:2], 32)
        blocks[..., -16:] = _joined(codes)
        if bits == 5:
            blocks[..., high_at : high_at + 4] = np.packbits(codes >> 4, axis=-1, bitorder="little")

    return Layout(read, write)


def _nibbles(data: Bytes) -> Bytes:
    """16 bytes: low nibbles first, then high ones."""
    nibbles: Bytes = np.concatenate([data & 15, data >> 4], axis=-1)
    return nibbles


def _joined(codes: Bytes) -> Bytes:
    half = codes.shape[-1] // 2
    joined: Bytes = np.bitwise_or(codes[..., :half] & 15, (codes[..., half:] & 15) << 4)
    return joined


def _coded(codes: Bytes, scale: Floats, base: Floats, levels: npt.ArrayLike) -> Coded:
    rows = len(codes)
    return Coded(
        codes.reshape(rows, -1),
        scale.reshape(rows, -1).astype(np.float32),
        base.reshape(rows, -1).astype(np.float32),
        np.asarray(levels, dtype=np.float32),
    )


def _wide(bits: int) -> Layout:
    """Q4_K, Q5_K: eight groups of 32, pairs of which share bytes; a bit plane for the fifth."""
    high_at = 16

    def read(blocks: Bytes) -> Coded:
        from gguf.quants import Q4_K

        rows, count = blocks.shape[:2]
        scales = np.ascontiguousarray(blocks[..., 4:16]).reshape(-1, 12)
        steps, minima = (x.reshape(rows, count, 8) for x in Q4_K.get_scale_min(scales))
        codes = _nibbles(blocks[..., -128:].reshape(rows, count, 4, 32)).reshape(rows, count, 8, 32)
        if bits == 5:
            plane = blocks[..., high_at : high_at + 32]
            codes |= ((plane[:, :, None] >> PLANES) & 1) << 4
        scale, base = _halves(blocks, 0) * steps, -_halves(blocks, 2) * minima
        return _coded(codes, scale, base, np.arange(2**bits))

    def write(blocks: Bytes, codes_RC: Bytes) -> None:
        rows, count = blocks.shape[:2]
        codes = codes_RC.reshape(rows, count, 8, 32)
        pairs = codes.reshape(rows, count, 4, 64)
        blocks[..., -128:] = _joined(pairs).reshape(rows, count, 128)
        if bits == 5:
            planes = (codes >> 4) << PLANES
            blocks[..., high_at : high_at + 32] = np.bitwise_or.reduce(planes, axis=2)

    return Layout(read, write)


def _read_q6(blocks: Bytes) -> Coded:
    """Two halves of 128: low nibbles of 64 bytes twice over, two high bits in 32 bytes."""
    rows, count = blocks.shape[:2]
    low = blocks[..., :128].reshape(rows, count, 2, 1, 64)
    high = blocks[..., 128:192].reshape(rows, count, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], axis=3).reshape(rows, count, 2, 4, 32)
    codes = nibbles | (((high >> SHIFTS) & 3) << 4)
    scale = _halves(blocks, 208) * blocks[..., 192:208].view(np.int8)
    return _coded(codes, scale, -32 * scale, np.arange(64))


def _write_q6(blocks: Bytes, codes_RC: Bytes) -> None:
    rows, count = blocks.shape[:2]
    codes = codes_RC.reshape(rows, count, 2, 4, 32)
    nibbles = (codes & 15).reshape(rows, count, 2, 2, 64)
    blocks[..., :128] = (nibbles[..., 0, :] | (nibbles[..., 1, :] << 4)).reshape(rows, count, 128)
    high = (codes >> 4) << SHIFTS
    blocks[..., 128:192] = np.bitwise_or.reduce(high, axis=3).reshape(rows, count, 64)


def _read_q3(blocks: Bytes) -> Coded:
    """Bit planes of 32 bytes for the third bit, two halves of two bits, sixteen 6-bit scales."""
    rows, count = blocks.shape[:2]
    low = (blocks[..., 32:96].reshape(rows, count, 2, 1, 32) >> SHIFTS) & 3
    high = (blocks[..., :32].reshape(rows, count, 1, 32) >> PLANES) & 1
    codes: Bytes = np.bitwise_or(low.reshape(rows, count, 256), high.reshape(rows, count, 256) << 2)
    steps = _nibbles(blocks[..., 96:104])
    tops = (blocks[..., 104:108].reshape(rows, count, 1, 4) >> SHIFTS) & 3
    steps |= tops.reshape(rows, count, 16) << 4
    scale = _halves(blocks, 108) * (steps.astype(np.float32) - 32)
    return _coded(codes, scale, -4 * scale, np.arange(8))


def _write_q3(blocks: Bytes, codes_RC: Bytes) -> None:
    rows, count = blocks.shape[:2]
    low = (codes_RC.reshape(rows, count, 2, 4, 32) & 3) << SHIFTS
    blocks[..., 32:96] = np.bitwise_or.reduce(low, axis=3).reshape(rows, count, 64)
    high = (codes_RC.reshape(rows, count, 8, 32) >> 2) << PLANES
    blocks[..., :32] = np.bitwise_or.reduce(high, axis=2)


def _read_iq4_xs(blocks: Bytes) -> Coded:
    """Eight groups of 32 with 6-bit scales."""
    from gguf.quants import IQ4_NL

    rows, count = blocks.shape[:2]
    steps = (blocks[..., 4:8].reshape(rows, count, 4, 1) >> np.array([0, 4], np.uint8)) & 15
    tops = (blocks[..., 2:4].reshape(rows, count, 2, 1) >> SHIFTS[:, 0]) & 3
    both = steps.reshape(rows, count, 8) | (tops.reshape(rows, count, 8) << 4)
    scale = _halves(blocks, 0) * (both.astype(np.float32) - 32)
    codes = _nibbles(blocks[..., 8:].reshape(rows, count, 8, 16))
    return _coded(codes, scale, np.zeros_like(scale), IQ4_NL.kvalues)


def _write_iq4_xs(blocks: Bytes, codes_RC: Bytes) -> None:
    rows, count = blocks.shape[:2]
    groups = codes_RC.reshape(rows, count, 8, 32)
    blocks[..., 8:] = _joined(groups).reshape(rows, count, 128)


def _read_iq4_nl(blocks: Bytes) -> Coded:
    from gguf.quants import IQ4_NL

    scale = _halves(blocks, 0)
    return _coded(_nibbles(blocks[..., 2:]), scale, np.zeros_like(scale), IQ4_NL.kvalues)


def _write_iq4_nl(blocks: Bytes, codes_RC: Bytes) -> None:
    blocks[..., 2:] = _joined(codes_RC.reshape(*blocks.shape[:2], 32))


def _read_q8(blocks: Bytes) -> Coded:
    scale = _halves(blocks, 0)
    return _coded(blocks[..., 2:] ^ SIGN, scale, np.zeros_like(scale), np.arange(-128, 128))


def _write_q8(blocks: Bytes, codes_RC: Bytes) -> None:
    blocks[..., 2:] = codes_RC.reshape(*blocks.shape[:2], 32) ^ SIGN


LAYOUTS = {
    "Q4_0": _narrow(has_base=False, bits=4),
    "Q4_1": _narrow(has_base=True, bits=4),
    "Q5_0": _narrow(has_base=False, bits=5),
    "Q5_1": _narrow(has_base=True, bits=5),
    "Q3_K": Layout(_read_q3, _write_q3),
    "Q4_K": _wide(bits=4),
    "Q5_K": _wide(bits=5),
    "Q6_K": Layout(_read_q6, _write_q6),
    "Q8_0": Layout(_read_q8, _write_q8),
    "IQ4_XS": Layout(_read_iq4_xs, _write_iq4_xs),
    "IQ4_NL": Layout(_read_iq4_nl, _write_iq4_nl),
}

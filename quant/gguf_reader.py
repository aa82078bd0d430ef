"""Reads GGUF files without their vocabularies, which take the library's reader seconds."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType
from gguf.quants import dequantize

# The embedding is looked up, never multiplied by, unless it is the head as well.
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# Longer arrays are vocabularies, merges and scores.
LONG_ARRAY = 1024
ARRAY_HEAD = struct.Struct("<IQ")
LENGTH = struct.Struct("<Q")


class TensorReader(GGUFReader):  # type: ignore[misc]
    """The library's reader; a long array has no contents here."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """Raises ValueError for a file that ends in an array."""
        if raw_type == GGUFValueType.ARRAY and self.byte_order == "I":
            try:
                kind, count = ARRAY_HEAD.unpack_from(self.data, orig_offs)
                if count > LONG_ARRAY:
                    start = orig_offs + ARRAY_HEAD.size
                    end = self._end_of_items(GGUFValueType(kind), count, start)
                    return end - orig_offs, [], [], [GGUFValueType.ARRAY]
            except (struct.error, OverflowError) as error:
                raise ValueError(f"the file ends in an array at byte {orig_offs}") from error
        return super()._get_field_parts(orig_offs, raw_type)

    def _end_of_items(self, kind: GGUFValueType, count: int, start: int) -> int:
        if kind != GGUFValueType.STRING:
            return start + count * int(self.gguf_scalar_to_np[kind]().itemsize)
        for _ in range(count):
            start += LENGTH.size + LENGTH.unpack_from(self.data, start)[0]
        return start


def matrices(path: Path, mode: str = "r") -> dict[str, Any]:
    """The matrices of a GGUF by name; `shape` begins with the columns. Mode r+ writes to them."""
    return {t.name: t for t in TensorReader(path, mode).tensors if len(t.shape) > 1}


def values_of(tensor: Any) -> npt.NDArray[np.float32]:
    """(rows, columns) in float32, whatever the type."""
    columns = int(tensor.shape[0])
    values: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
    return values.reshape(-1, columns).astype(np.float32, copy=False)

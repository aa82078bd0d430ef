"""Rounds the weights of quantized GGUF files again, by GPTQ, in the files as they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quant.codes import LAYOUTS, read_codes, write_codes
from quant.gguf import architecture_of
from quant.gguf_reader import matrices, values_of
from quant.gptq import HEAD, inverse_roots, rounded
from quant.imatrix import gguf_names, head_name


def round_again(
    paths: Sequence[Path], full: Path, model: Any, sequences: Sequence[Sequence[int]]
) -> None:
    """Rewrite the codes in `paths`, which llama.cpp wrote from `full` (an F16 GGUF).

    `model` is the checkpoint in torch and `sequences` the token ids it is watched on. Types that
    `quant.codes` does not know stay as they are.
    """
    plain = matrices(full)
    files = [matrices(path, "r+") for path in paths]
    layers = {**gguf_names(model, architecture_of(full)), HEAD: head_name(model)}
    for names, root in inverse_roots(model, layers, sequences):
        values = {name: values_of(plain[name]) for name in names}
        written = [
            tensors[name]
            for tensors in files
            for name in names
            if tensors[name].tensor_type.name in LAYOUTS
        ]
        rows = [t.data.reshape(int(t.shape[1]), -1) for t in written]
        kinds = [t.tensor_type.name for t in written]
        coded = [read_codes(kind, data_RB) for kind, data_RB in zip(kinds, rows, strict=True)]
        codes = rounded([values[t.name] for t in written], coded, root)
        for kind, data_RB, codes_RC in zip(kinds, rows, codes, strict=True):
            data_RB[...] = write_codes(kind, data_RB, codes_RC)

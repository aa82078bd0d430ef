"""Rounds the four-bit weights of an ONNX folder again, by GPTQ, in the file as it lies.

For folders of onnxruntime-genai's builder: `MatMulNBits` nodes, named after the checkpoint's
modules. A node's weight is `(code - zero point) * scale`; even columns lie in low nibbles
(onnxruntime, docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quant.codes import Coded
from quant.gptq import inverse_roots, rounded

MIDDLE = 8


class _Node(NamedTuple):
    """One product: packed weights, scales and zero points in the file, and whose they are."""

    arrays: list[npt.NDArray[Any]]
    modules: list[str]


def round_again(folder: Path, model: Any, sequences: Sequence[Sequence[int]]) -> None:
    """Rewrite the codes in `folder`, exported from the checkpoint that `model` holds in torch.

    `sequences` are the token ids it is watched on. The head, nodes whose modules the checkpoint
    lacks, and those whose last block is padded stay as they are.
    """
    nodes = _nodes(folder, model)
    for names, root in inverse_roots(model, {name: name for name in nodes}, sequences):
        mine = [nodes[name] for name in names]
        weights = [
            np.concatenate(
                [model.get_submodule(m).weight.detach().float().numpy() for m in node.modules]
            )
            for node in mine
        ]
        codes = rounded(weights, [_read(*node.arrays) for node in mine], root)
        for node, codes_NK in zip(mine, codes, strict=True):
            packed = node.arrays[0]
            packed[...] = _packed(codes_NK).reshape(packed.shape)


def _nodes(folder: Path, model: Any) -> dict[str, _Node]:
    """By the first module whose inputs the node reads."""
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes: dict[str, _Node] = {}
    for node in graph.node:
        options = {a.name: a.i for a in node.attribute}
        whole = node.op_type == "MatMulNBits" and options["bits"] == 4
        whole = whole and options["K"] % options["block_size"] == 0
        modules = _modules(node.input[1].partition(".MatMul")[0]) if whole else []
        if modules and all(_has(model, name) for name in modules):
            arrays = [_array(folder, initializers[name]) for name in node.input[1:4] if name]
            nodes[modules[0]] = _Node(arrays, modules)
    return nodes


def _modules(label: str) -> list[str]:
    """The checkpoint's modules behind a label of the builder."""
    name = label.replace(".attn.", ".self_attn.")
    start, joined, end = name.partition("qkv_proj")
    return [f"{start}{letter}_proj{end}" for letter in "qkv"] if joined else [name]


def _has(model: Any, name: str) -> bool:
    try:
        module = model.get_submodule(name)
        return hasattr(module, "weight") and module is not model.get_output_embeddings()
    except AttributeError:
        return False


def _array(folder: Path, tensor: Any) -> npt.NDArray[Any]:
    """The bytes where they lie in the data file, writable."""
    from onnx.helper import tensor_dtype_to_np_dtype

    place = {entry.key: entry.value for entry in tensor.external_data}
    return np.memmap(
        folder / place["location"],
        dtype=tensor_dtype_to_np_dtype(tensor.data_type),
        mode="r+",
        offset=int(place.get("offset", 0)),
        shape=tuple(tensor.dims),
    )


def _read(packed: Any, scale_NG: Any, zeros: Any = None) -> Coded:
    rows = len(packed)
    codes_NK = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1)
    scale_NG = np.array(scale_NG, np.float32).reshape(rows, -1)
    zero_NG: Any = MIDDLE
    if zeros is not None:
        zeros = zeros.reshape(rows, -1)
        zero_NG = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1)
        zero_NG = zero_NG[:, : scale_NG.shape[1]].astype(np.float32)
    return Coded(codes_NK, scale_NG, -zero_NG * scale_NG, np.arange(16, dtype=np.float32))


def _packed(codes_NK: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    pairs = codes_NK.reshape(len(codes_NK), -1, 2)
    packed: npt.NDArray[np.uint8] = np.bitwise_or(pairs[..., 0], pairs[..., 1] << 4)
    return packed

"""What an artifact really holds: bits a weight, types, tokenizer, template, end tokens.

Reads headers, tensor tables and graphs, never a label alone: rows that do not divide by 256 make
K-quants fall back to larger types, and the name of the file does not say so.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from quant.gguf_reader import EMBEDDING, HEAD
from serve.engines.stopping import token_ids
from serve.errors import DataError
from serve.messages import Record

# The type most weights have in a file of that name (llama-quant.cpp, default types).
MAIN_TYPES = {
    "Q2_K": "Q2_K",
    "Q3_K_M": "Q3_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_M": "Q5_K",
    "IQ4_XS": "IQ4_XS",
}
# Written apart from the layers, in a type of their own.
APART = (EMBEDDING, HEAD)
LIE_SHARE = 0.5


class Inspection(Record):
    """`types` counts tensors; `shares` are those types' shares of the weights in the layers."""

    file: str
    size_bytes: int
    blocks: int
    weights: int
    unquantized_bytes: int
    bits_per_weight: float
    types: dict[str, int]
    shares: dict[str, float]
    architecture: str
    tokenizer: str
    template_sha256: str | None
    end_tokens: tuple[int, ...]
    metadata: dict[str, str | int]
    warnings: tuple[str, ...]


def inspect(path: Path) -> Inspection:
    """A GGUF file or an ONNX folder. Raises DataError for one that is not whole."""
    return inspect_onnx(path) if path.is_dir() else inspect_gguf(path)


def inspect_onnx(folder: Path) -> Inspection:
    """`types` counts weight tensors by what holds them: int4, int8, or a float type.

    Raises DataError for a folder that is no whole ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        architecture, blocks, ends = _onnx_config(folder)
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        data_bytes = _external_bytes(folder, graph)
        template = _text_of(folder / "chat_template.jinja")
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise DataError(f"{folder.name} is not a whole ONNX model: {error}") from error
    counts, weights = _onnx_weights(graph)
    total = sum(weights.values())
    return Inspection(
        file=folder.name,
        size_bytes=sum(p.stat().st_size for p in folder.iterdir()),
        blocks=blocks,
        weights=total,
        unquantized_bytes=4 * weights["FLOAT"],
        bits_per_weight=round(8 * data_bytes / total, 3),
        types=dict(counts),
        shares={kind: round(n / total, 4) for kind, n in weights.most_common()},
        architecture=architecture,
        tokenizer="tokenizer.json",
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else None,
        end_tokens=ends,
        metadata={},
        warnings=() if template else ("no chat template",),
    )


def _onnx_config(folder: Path) -> tuple[str, int, tuple[int, ...]]:
    """Architecture, layers and end tokens, of the builder's folder or of optimum's."""
    own = folder / "genai_config.json"
    if own.exists():
        config = json.loads(own.read_text(encoding="utf-8"))["model"]
        kind, blocks, ends = config["type"], config["decoder"]["num_hidden_layers"], config
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, blocks = config["model_type"], config["num_hidden_layers"]
        ends = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return str(kind), int(blocks), token_ids(ends["eos_token_id"])


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _external_bytes(folder: Path, graph: Any) -> int:
    """Bytes of all weights. Raises ValueError when a file holds fewer than the graph says."""
    total = 0
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            total += len(tensor.raw_data)
            continue
        last = int(entries.get("offset", 0)) + int(entries["length"])
        held = (folder / entries["location"]).stat().st_size
        if last > held:
            raise ValueError(f"{tensor.name} ends at byte {last} of a file of {held}")
        total += int(entries["length"])
    return total


def _onnx_weights(graph: Any) -> tuple[Counter[str], Counter[str]]:
    """Tensors and weights by type. A blockwise product says its own bits and shape."""
    import onnx

    counts: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    parts: set[str] = set()
    sizes = {t.name: math.prod(t.dims) for t in graph.initializer}
    reshaped = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Reshape"}
    for node in graph.node:
        options = {a.name: a.i for a in node.attribute}
        if node.op_type == "MatMulNBits":
            name, bits = node.input[1], options["bits"]
            size = options["K"] * options["N"]
        elif node.op_type == "GatherBlockQuantized":
            name, bits = reshaped.get(node.input[0], node.input[0]), options.get("bits", 4)
            size = sizes[name] * 8 // bits
        else:
            continue
        if name not in parts:  # a tied embedding is the head's weight
            counts[f"int{bits}"] += 1
            weights[f"int{bits}"] += size
        parts.update(n for n in (name, *node.input) if n in sizes)
    for tensor in graph.initializer:
        if tensor.name not in parts:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type)
            counts[kind] += 1
            weights[kind] += sizes[tensor.name]
    return counts, weights


def inspect_gguf(path: Path) -> Inspection:
    """Raises DataError for a file that is no whole GGUF."""
    from quant.gguf_reader import TensorReader

    try:
        reader = TensorReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        architecture = str(fields["general.architecture"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path.name} is not a whole GGUF: {error}") from error
    tensors = list(reader.tensors)
    weights = sum(int(t.n_elements) for t in tensors)
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / weights
    shares = _layer_shares(tensors)
    template = fields.get("tokenizer.chat_template")
    return Inspection(
        file=path.name,
        size_bytes=path.stat().st_size,
        blocks=int(fields.get(f"{architecture}.block_count", 0)),
        weights=weights,
        unquantized_bytes=sum(int(t.n_bytes) for t in tensors if t.tensor_type.name == "F32"),
        bits_per_weight=round(bits, 3),
        types=dict(Counter(t.tensor_type.name for t in tensors)),
        shares=shares,
        architecture=architecture,
        tokenizer=f"{fields.get('tokenizer.ggml.model')}/{fields.get('tokenizer.ggml.pre')}",
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else None,
        end_tokens=_end_tokens(fields),
        metadata={
            name: value
            for name, value in fields.items()
            if name.startswith(("quantize.", "retort.")) and isinstance(value, str | int)
        },
        warnings=_warnings(path, bits, shares, template),
    )


def _layer_shares(tensors: list[Any]) -> dict[str, float]:
    """Share of the weights of matrices inside layers that each type holds."""
    inside = [t for t in tensors if len(t.shape) > 1 and t.name not in APART]
    total = sum(int(t.n_elements) for t in inside)
    counted: Counter[str] = Counter()
    for tensor in inside:
        counted[tensor.tensor_type.name] += int(tensor.n_elements)
    return {name: round(count / total, 4) for name, count in counted.most_common()}


def _end_tokens(fields: dict[str, Any]) -> tuple[int, ...]:
    names = ("eos", "eot", "eom")
    found = {fields.get(f"tokenizer.ggml.{name}_token_id") for name in names} - {None}
    return tuple(sorted(int(token) for token in found if token is not None))


def _warnings(
    path: Path, bits: float, shares: dict[str, float], template: str | None
) -> tuple[str, ...]:
    label = path.stem.rpartition("-")[2]
    main = MAIN_TYPES.get(label, label)
    found = []
    if label in MAIN_TYPES and shares.get(main, 0.0) < LIE_SHARE:
        held = ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares.items())
        found.append(f"{label} in name only: {held}; {bits:.2f} bits a weight")
    if not template:
        found.append("no chat template")
    return tuple(found)

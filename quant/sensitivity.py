"""Which weights can be written coarsely: a type for every group of tensors, within a byte budget.

Each group (one kind of matrix in one band of layers) is quantized alone in torch and the student's
divergence from itself measured. Noise in weights costs about its importance-weighted squared error
(second order of KL; cf. LeCun et al. 1990, OBD), so one measurement a group prices all its types.

Errors are not always noise: a student that was trained from a four-bit file lies near that file's
grid, and the same type rounds away what it learned: a small error everywhere, all of one direction.
So each type is also measured on the whole student, and left out when its prices do not add up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quant.divergence import kl_nats, log_softmax
from quant.imatrix import ImportanceMatrix, gguf_names
from serve.engines.base import LogitsTV
from serve.errors import DataError, UsageError

BANDS = 5
# K-quants need rows that divide by 256; what llama.cpp would fall back to is worse than these.
WIDE_TYPES = ("Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
NARROW_TYPES = ("IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
TYPES = tuple(dict.fromkeys(WIDE_TYPES + NARROW_TYPES))
WIDE_ROW = 256
# Noise of independent groups adds up; measured on students of ours within 0.9 to 1.7.
NOISE_LIMIT = 2.0

Weights = npt.NDArray[np.float32]


class Price(NamedTuple):
    """What a group costs in one type."""

    size_bytes: int
    kl_nats: float


def groups_of(names: Sequence[str], blocks: int) -> dict[str, tuple[str, ...]]:
    """Tensor names by kind and band of layers, `attn_q 0-5`; those outside layers by themselves."""
    members: dict[str, list[str]] = {}
    width = -(-blocks // BANDS)
    for name in names:
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        key = name
        if match:
            first = int(match[1]) // width * width
            key = f"{match[2]} {first}-{min(first + width, blocks) - 1}"
        members.setdefault(key, []).append(name)
    return {key: tuple(tensors) for key, tensors in members.items()}


def price_groups(
    model: Any,
    full: Path,
    encoded: Mapping[str, Path],
    matrix: ImportanceMatrix,
    sequences: Sequence[Sequence[int]],
) -> dict[str, dict[str, Price]]:
    """Group -> type -> price. `encoded` holds the student written wholly in each of `TYPES`.

    `model` is the float32 checkpoint that `full` (F16 GGUF) was converted from; its weights come
    back unchanged. Raises DataError when the two do not belong together.
    """
    from gguf import GGUFReader

    reader = GGUFReader(full)
    architecture = str(reader.fields["general.architecture"].contents())
    blocks = model.config.get_text_config().num_hidden_layers
    plain = {t.name: t for t in reader.tensors}
    files = {kind: {t.name: t for t in GGUFReader(path).tensors} for kind, path in encoded.items()}
    modules = _weights_by_name(model, architecture)
    reference = [log_softmax(_logits(model, ids)) for ids in sequences]

    def measured(kind: str, names: Sequence[str]) -> float:
        written = {name: files[kind][name] for name in names}
        return _measured(model, modules, plain, written, sequences, reference)

    groups = groups_of([n for n in plain if n in modules], blocks)
    nats: dict[str, dict[str, float]] = {}
    for group, names in groups.items():
        kinds = _types_for(plain[names[0]])
        noise = measured(kinds[0], names)
        errors = {
            kind: sum(
                weighted_error(plain[n], files[kind][n], matrix.mean_squares[n]) for n in names
            )
            for kind in kinds
        }
        nats[group] = {kind: noise * errors[kind] / errors[kinds[0]] for kind in kinds}
    leave_out_what_is_not_noise(nats, groups, measured)
    return {
        group: {
            kind: Price(sum(int(files[kind][n].n_bytes) for n in groups[group]), value)
            for kind, value in kinds.items()
        }
        for group, kinds in nats.items()
    }


def leave_out_what_is_not_noise(
    nats: dict[str, dict[str, float]],
    groups: Mapping[str, Sequence[str]],
    measured: Callable[[str, Sequence[str]], float],
) -> None:
    """Drop every type that does more to the whole student than its prices add up to."""
    for kind in TYPES:
        members = [group for group, kinds in nats.items() if kind in kinds]
        expected = sum(nats[group][kind] for group in members)
        names = [name for group in members for name in groups[group]]
        if names and measured(kind, names) > NOISE_LIMIT * expected:
            for group in members:
                del nats[group][kind]


def allocate(prices: Mapping[str, Mapping[str, Price]], budget_bytes: int) -> dict[str, str]:
    """A type a group: from the smallest up, always the step that saves most nats a byte.

    Steps go along each group's lower convex hull, where greedy is optimal up to the last step.
    Raises UsageError when the smallest file is over the budget.
    """
    hulls = {group: _hull(options) for group, options in prices.items()}
    at = dict.fromkeys(hulls, 0)
    spent = sum(hull[0][1].size_bytes for hull in hulls.values())
    if spent > budget_bytes:
        raise UsageError(f"{budget_bytes} bytes are too few: the smallest file has {spent}")
    steps = sorted(
        (
            (after.kl_nats - before.kl_nats) / (after.size_bytes - before.size_bytes),
            group,
            step,
            after.size_bytes - before.size_bytes,
        )
        for group, hull in hulls.items()
        for step, ((_, before), (_, after)) in enumerate(pairwise(hull), 1)
    )
    for _, group, step, cost in steps:
        if at[group] == step - 1 and spent + cost <= budget_bytes:
            at[group], spent = step, spent + cost
    return {group: hulls[group][index][0] for group, index in at.items()}


def overrides_of(
    chosen: Mapping[str, str], groups: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, str], ...]:
    """One exact pattern a group, for the quantizer."""
    return tuple(
        ("^(" + "|".join(re.escape(name) for name in groups[group]) + ")$", kind)
        for group, kind in chosen.items()
    )


def _hull(options: Mapping[str, Price]) -> list[tuple[str, Price]]:
    """Types on the lower convex hull of (bytes, nats), smallest first."""
    hull: list[tuple[str, Price]] = []
    for kind, price in sorted(options.items(), key=lambda item: item[1]):
        if hull and price.kl_nats >= hull[-1][1].kl_nats:
            continue
        while len(hull) > 1 and _slope(hull[-2][1], hull[-1][1]) >= _slope(hull[-1][1], price):
            hull.pop()
        hull.append((kind, price))
    return hull


def _slope(one: Price, other: Price) -> float:
    return (other.kl_nats - one.kl_nats) / (other.size_bytes - one.size_bytes)


def _types_for(tensor: Any) -> tuple[str, ...]:
    """Coarsest first. `shape` of a GGUF tensor begins with the columns."""
    return WIDE_TYPES if int(tensor.shape[0]) % WIDE_ROW == 0 else NARROW_TYPES


def _weights_by_name(model: Any, architecture: str) -> dict[str, Any]:
    """GGUF name -> torch weight, of every matrix the student multiplies by."""
    weights = {
        name: model.get_submodule(module).weight
        for module, name in gguf_names(model, architecture).items()
    }
    head = model.get_output_embeddings().weight
    tied = model.config.get_text_config().tie_word_embeddings
    return {**weights, "token_embd.weight" if tied else "output.weight": head}


def _values(tensor: Any) -> Weights:
    """(rows, columns) in float32, whatever the type."""
    from gguf.quants import dequantize

    columns = int(tensor.shape[0])
    values: Weights = dequantize(tensor.data, tensor.tensor_type).reshape(-1, columns)
    return values.astype(np.float32, copy=False)


def weighted_error(plain: Any, encoded: Any, mean_squares: Weights) -> float:
    """Squared error of the weights, each column weighed by how strongly it is used."""
    difference = _values(plain) - _values(encoded)
    return float((np.square(difference).sum(axis=0, dtype=np.float64) * mean_squares).sum())


def _rows_in_checkpoint_order(plain: Weights, weight: Weights, name: str) -> npt.NDArray[np.int64]:
    """Which GGUF row each checkpoint row became: the converter reorders heads of some models."""
    halves = weight.astype(np.float16)
    rows = {row.tobytes(): index for index, row in enumerate(plain.astype(np.float16))}
    try:
        return np.array([rows[row.tobytes()] for row in halves])
    except KeyError:
        raise DataError(f"{name} of the GGUF does not hold the checkpoint's rows") from None


def _measured(
    model: Any,
    modules: Mapping[str, Any],
    plain: Mapping[str, Any],
    probe: Mapping[str, Any],
    sequences: Sequence[Sequence[int]],
    reference: Sequence[LogitsTV],
) -> float:
    """Mean KL in nats of the model with the weights of `probe` in it."""
    import torch

    kept = {name: modules[name].detach().clone() for name in probe}
    try:
        for name, tensor in probe.items():
            order = _rows_in_checkpoint_order(_values(plain[name]), kept[name].numpy(), name)
            with torch.no_grad():
                modules[name].copy_(torch.from_numpy(_values(tensor)[order]))
        parts = [
            kl_nats(expected, log_softmax(_logits(model, ids)))
            for ids, expected in zip(sequences, reference, strict=True)
        ]
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                modules[name].copy_(weight)
    return float(np.concatenate(parts).mean())


def _logits(model: Any, ids: Sequence[int]) -> LogitsTV:
    import torch

    with torch.inference_mode():
        result: LogitsTV = model(torch.tensor([list(ids)])).logits[0].float().numpy()
        return result

"""Rounding whose errors cancel on the inputs that a student has (GPTQ, Frantar et al. 2022).

Quantizers round each weight to the nearest step. GPTQ (section 4) rounds a column at a time and
moves what it lost onto the columns still to come, by the inverse of the inputs' second moments;
strongest columns go first ("act-order"). Scales stay where the quantizer put them, so type, size
and speed of a file do not change (for K-quants first done by IST-DASLab's gptq-gguf-toolkit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quant.codes import Coded
from quant.imatrix import inputs_watched

# Share of the mean diagonal that is added to it (section 4, step 3).
DAMPING = 0.01
COLUMNS_AT_A_TIME = 32
MOMENTS_LIMIT_BYTES = 2**30
ROWS_AT_A_TIME = 16_384
# Stands for the module that reads the last hidden states, which it may share with the embedding.
HEAD = ""

Floats = npt.NDArray[np.float32]


class InverseRoot(NamedTuple):
    """Columns from the strongest to the weakest (C,), and U (C, C): moments^-1 = U^T U."""

    order: Any
    upper: Any


def rounded(
    weights: Sequence[Floats], coded: Sequence[Coded], root: InverseRoot
) -> list[npt.NDArray[np.uint8]]:
    """Codes (R, C) of each of `weights` (R, C), which all multiply the same inputs."""
    found: dict[int, npt.NDArray[np.uint8]] = {}
    alike: dict[bytes, list[int]] = {}
    for index, one in enumerate(coded):
        alike.setdefault(one.levels.tobytes(), []).append(index)
    for members in alike.values():
        for pieces in _portions([(i, len(weights[i])) for i in members]):
            codes_RC = _rounded(
                np.concatenate([weights[i][rows] for i, rows in pieces]),
                np.concatenate(
                    [_of_columns(coded[i].scale[rows], weights[i]) for i, rows in pieces]
                ),
                np.concatenate(
                    [_of_columns(coded[i].base[rows], weights[i]) for i, rows in pieces]
                ),
                coded[members[0]].levels,
                root,
            )
            start = 0
            for i, rows in pieces:
                mine = found.setdefault(i, np.empty(weights[i].shape, np.uint8))[rows]
                mine[...] = codes_RC[start : start + len(mine)]
                start += len(mine)
    return [found[index] for index in range(len(coded))]


def _portions(lengths: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, slice]]]:
    """Slices of numbered matrices (number, rows), as many rows at a time as memory is for."""
    pieces: list[tuple[int, slice]] = []
    room = ROWS_AT_A_TIME
    for number, rows in lengths:
        start = 0
        while start < rows:
            stop = min(rows, start + room)
            pieces.append((number, slice(start, stop)))
            room -= stop - start
            start = stop
            if room == 0:
                yield pieces
                pieces, room = [], ROWS_AT_A_TIME
    if pieces:
        yield pieces


def _of_columns(groups: Floats, weights_RC: Floats) -> Floats:
    return np.repeat(groups, weights_RC.shape[1] // groups.shape[1], axis=1)


def _rounded(
    weights_RC: Floats, scale_RC: Floats, base_RC: Floats, levels: Floats, root: InverseRoot
) -> npt.NDArray[np.uint8]:
    """Column by column, rows side by side: columns come first in memory."""
    import torch

    left_CR, scale_CR, base_CR = (
        torch.from_numpy(values_RC).T[root.order].contiguous()
        for values_RC in (weights_RC, scale_RC, base_RC)
    )
    nearest = _nearest(levels)
    upper_CC, columns = root.upper, len(left_CR)
    codes_CR = torch.empty(left_CR.shape, dtype=torch.uint8)
    for start in range(0, columns, COLUMNS_AT_A_TIME):
        stop = min(start + COLUMNS_AT_A_TIME, columns)
        losses_BR = torch.empty(stop - start, left_CR.shape[1])
        for column in range(start, stop):
            wanted_R, scale_R, base_R = left_CR[column], scale_CR[column], base_CR[column]
            # A group of equal weights has no step, and any code will do.
            step_R = scale_R.where(scale_R != 0, 1.0)
            codes_R, levels_R = nearest((wanted_R - base_R) / step_R)
            loss_R = torch.addcmul(wanted_R - base_R, scale_R, levels_R, value=-1)
            loss_R /= upper_CC[column, column]
            left_CR[column + 1 : stop].addr_(upper_CC[column, column + 1 : stop], loss_R, alpha=-1)
            codes_CR[column], losses_BR[column - start] = codes_R, loss_R
        left_CR[stop:].addmm_(upper_CC[start:stop, stop:].T, losses_BR, alpha=-1)
    codes: npt.NDArray[np.uint8] = codes_CR[torch.argsort(root.order)].T.contiguous().numpy()
    return codes


def _nearest(levels: Floats) -> Callable[[Any], tuple[Any, Any]]:
    """From wanted levels (R,) to the codes and levels of the nearest ones."""
    import torch

    levels_L = torch.from_numpy(levels)
    if np.array_equal(np.diff(levels), np.ones(len(levels) - 1)):
        first, last = float(levels[0]), float(levels[-1])

        def by_rounding(wanted_R: Any) -> tuple[Any, Any]:
            levels_R = wanted_R.round_().clamp_(first, last)
            return levels_R - first, levels_R

        return by_rounding
    middles = (levels_L[1:] + levels_L[:-1]) / 2

    def by_search(wanted_R: Any) -> tuple[Any, Any]:
        codes_R = torch.bucketize(wanted_R, middles)
        return codes_R, levels_L[codes_R]

    return by_search


def inverse_roots(
    model: Any, names: Mapping[str, str], sequences: Sequence[Sequence[int]]
) -> Iterator[tuple[list[str], InverseRoot]]:
    """Weights that multiply the same inputs, and those inputs' root; `names`: of modules.

    As many at a time as memory is set aside for: each time `model` reads all `sequences`.
    """
    part: dict[str, str] = {}
    size_bytes = 0
    for module, name in names.items():
        reader = model.get_submodule(module) if module else model.get_output_embeddings()
        needed = 4 * int(reader.weight.shape[1]) ** 2
        if part and size_bytes + needed > MOMENTS_LIMIT_BYTES:
            yield from _roots_of(model, part, sequences)
            part, size_bytes = {}, 0
        part[module] = name
        size_bytes += needed
    yield from _roots_of(model, part, sequences)


def _roots_of(
    model: Any, names: Mapping[str, str], sequences: Sequence[Sequence[int]]
) -> Iterator[tuple[list[str], InverseRoot]]:
    import torch

    layers = {module: name for module, name in names.items() if module != HEAD}
    with (
        torch.inference_mode(),
        inputs_watched(model, layers, _moments) as watched,
    ):
        for ids in sequences:
            states_1TC = model.base_model(torch.tensor([list(ids)]), use_cache=False)[0]
            if HEAD in names:
                watched.sums[names[HEAD]] += _moments(states_1TC[0])
    for first in list(watched.sums):
        alike = [first, *(name for name, other in watched.same.items() if other == first)]
        yield alike, _inverse_root(watched.sums.pop(first))


def _moments(inputs_TC: Any) -> Any:
    wide_TC = inputs_TC.float()
    return wide_TC.T @ wide_TC


def _inverse_root(moments_CC: Any) -> InverseRoot:
    import torch

    diagonal_C = moments_CC.diagonal().double()
    order_C = torch.argsort(diagonal_C, descending=True)
    wide_CC = moments_CC.double()[order_C][:, order_C]
    wide_CC.diagonal().add_(float(DAMPING * diagonal_C.mean()) or 1.0)
    # Factored from the last column on, the moments are R R^T with R upper, so U is R's inverse.
    lower_CC = torch.linalg.cholesky(wide_CC.flip(0, 1))
    identity_CC = torch.eye(len(lower_CC), dtype=lower_CC.dtype)
    inverse_CC = torch.linalg.solve_triangular(lower_CC, identity_CC, upper=False)
    return InverseRoot(order_C, inverse_CC.flip(0, 1).float())

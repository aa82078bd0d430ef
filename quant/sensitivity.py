"""What each group of tensors costs in each type: a few measurements in torch price them all.

Each group (one kind of matrix in one band of layers) is quantized alone and the student's
divergence from itself measured. Noise in weights costs about its importance-weighted squared error
(second order of KL; cf. LeCun et al. 1990, OBD), so one measurement a group prices all its types.

Errors are not always noise: a student that was trained from a four-bit file lies near that file's
grid, and the same type rounds away what it learned: a small error everywhere, all of one direction.
So each type is also measured on the whole student, and left out when its prices do not add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.budget import Price, groups_of, overrides_of
from quant.gguf import architecture_of
from quant.gguf_reader import EMBEDDING, matrices, values_of
from quant.imatrix import ImportanceMatrix, gguf_names, head_name
from serve.errors import DataError

# One round writes every tensor once: rows that divide by 256 in the first type, others in the
# second. What llama.cpp falls back to for those is worse.
ROUNDS = (
    ("Q3_K", "IQ4_NL"),
    ("IQ4_XS", "Q4_1"),
    ("Q4_K", "Q5_0"),
    ("Q5_K", "Q5_1"),
    ("Q6_K", "Q8_0"),
    ("Q8_0", "Q8_0"),
)
WIDE_ROW = 256
# Noise of independent groups adds up; measured on students of ours within 0.9 to 1.7.
NOISE_LIMIT = 2.0

Weights = npt.NDArray[np.float32]
Nats = dict[str, dict[str, float]]


def rounds_of(full: Path) -> list[tuple[tuple[str, str], ...]]:
    """Overrides of the quantizer for one file a round."""
    narrow = [name for name, tensor in matrices(full).items() if tensor.shape[0] % WIDE_ROW]
    return [
        (*(overrides_of({"narrow": other}, {"narrow": narrow}) if narrow else ()), (".*", wide))
        for wide, other in ROUNDS
    ]


def price_groups(
    model: Any,
    full: Path,
    rounds: Sequence[Path],
    matrix: ImportanceMatrix,
    sequences: Sequence[Sequence[int]],
) -> dict[str, dict[str, Price]]:
    """Group -> type -> price. `rounds` hold the student written wholly, coarsest types first.

    `model` is the float32 checkpoint that `full` (F16 GGUF) was converted from; its weights come
    back unchanged. Raises DataError when the two do not belong together.
    """
    bench = _Bench(model, full, sequences)
    groups = groups_of(list(bench.plain), model.config.get_text_config().num_hidden_layers)
    written: dict[str, dict[str, Any]] = {}
    for path in rounds:
        for name, tensor in matrices(path).items():
            if name in bench.plain:
                written.setdefault(tensor.tensor_type.name, {})[name] = tensor
    noise: dict[str, float] = {}
    errors: Nats = {group: {} for group in groups}
    whole: dict[str, float] = {}
    for kind, tensors in written.items():
        values = {name: values_of(tensor) for name, tensor in tensors.items()}
        whole[kind] = bench.divergence_nats(values)
        for group, names in groups.items():
            if names[0] not in values:
                continue
            mine = {name: values[name] for name in names}
            errors[group][kind] = sum(
                weighted_error(values_of(bench.plain[n]), mine[n], matrix.mean_squares.get(n, 1.0))
                for n in names
            )
            if group not in noise:
                noise[group] = bench.divergence_nats(mine) / errors[group][kind]
    nats = {
        group: {kind: noise[group] * error for kind, error in kinds.items()}
        for group, kinds in errors.items()
    }
    return {
        group: {
            kind: Price(sum(int(written[kind][name].n_bytes) for name in groups[group]), value)
            for kind, value in kinds.items()
        }
        for group, kinds in without_bias(nats, whole).items()
    }


def without_bias(nats: Nats, whole: Mapping[str, float]) -> Nats:
    """`nats` less every type that does more to the whole student than its prices add up to."""
    expected = {kind: sum(kinds.get(kind, 0.0) for kinds in nats.values()) for kind in whole}
    noisy = {kind for kind in whole if whole[kind] <= NOISE_LIMIT * expected[kind]}
    return {
        group: {kind: value for kind, value in kinds.items() if kind in noisy}
        for group, kinds in nats.items()
    }


class _Bench:
    """The student in torch, and how far it goes from itself with other weights in it."""

    def __init__(self, model: Any, full: Path, sequences: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._weights = _weights_by_name(model, architecture_of(full))
        self.plain = {n: t for n, t in matrices(full).items() if n in self._weights}
        self._order = {
            name: _rows_in_checkpoint_order(
                values_of(tensor), self._weights[name].detach().numpy(), name
            )
            for name, tensor in self.plain.items()
        }
        self._sequences = sequences
        self._expected = [self._logprobs(ids) for ids in sequences]

    def divergence_nats(self, values: Mapping[str, Weights]) -> float:
        """Mean KL a token with `values`, by GGUF name, in the place of the student's own."""
        import torch
        from torch.nn import functional

        kept = {name: self._weights[name].detach().clone() for name in values}
        try:
            with torch.no_grad():
                for name, rows in values.items():
                    self._weights[name].copy_(torch.from_numpy(rows[self._order[name]]))
            total = sum(
                functional.kl_div(self._logprobs(ids), want_TV, log_target=True, reduction="sum")
                for ids, want_TV in zip(self._sequences, self._expected, strict=True)
            )
        finally:
            with torch.no_grad():
                for name, weight in kept.items():
                    self._weights[name].copy_(weight)
        return float(total) / sum(map(len, self._sequences))

    def _logprobs(self, ids: Sequence[int]) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(torch.tensor([list(ids)])).logits[0].float().log_softmax(dim=-1)


def _weights_by_name(model: Any, architecture: str) -> dict[str, Any]:
    """GGUF name -> torch weight, of every matrix the student has."""
    weights = {
        name: model.get_submodule(module).weight
        for module, name in gguf_names(model, architecture).items()
    }
    weights[EMBEDDING] = model.get_input_embeddings().weight
    return {**weights, head_name(model): model.get_output_embeddings().weight}


def weighted_error(plain: Weights, encoded: Weights, mean_squares: Weights | float) -> float:
    """Squared error of the weights, each column weighed by how strongly it is used.

    An embedding that is only looked up uses all its columns alike.
    """
    squares = np.square(plain - encoded).sum(axis=0, dtype=np.float64)
    return float((squares * mean_squares).sum())


def _rows_in_checkpoint_order(plain: Weights, weight: Weights, name: str) -> npt.NDArray[np.int64]:
    """Which GGUF row each checkpoint row became: the converter reorders heads of some models."""
    halves = weight.astype(np.float16)
    rows = {row.tobytes(): index for index, row in enumerate(plain.astype(np.float16))}
    try:
        return np.array([rows[row.tobytes()] for row in halves])
    except KeyError:
        raise DataError(f"{name} of the GGUF does not hold the checkpoint's rows") from None

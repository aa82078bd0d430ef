"""How strongly a model uses each input column of each weight: its importance matrix.

Mean squared activations of the student on its own chat-templated traces, taken by hooks in torch,
under the names the weights have in GGUF. Written in llama.cpp's own imatrix format, so that its
tools read it too. Quantizers spend their precision on the columns that matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quant.gguf_reader import EMBEDDING, HEAD
from serve.errors import DataError

SUMS, COUNTS = ".in_sum2", ".counts"


class ImportanceMatrix(NamedTuple):
    """`mean_squares` (columns,) of each weight by its GGUF name, over `tokens` tokens."""

    mean_squares: dict[str, npt.NDArray[np.float32]]
    tokens: int
    dataset: str


def collect(
    model: Any, sequences: Sequence[Sequence[int]], architecture: str, dataset: str
) -> ImportanceMatrix:
    """Run a transformers causal `model` over token `sequences`, one by one.

    `architecture` is the GGUF's `general.architecture`; `dataset` says where the tokens are from.
    Raises DataError for no tokens, or when no weight of the model has a GGUF name.
    """
    import torch

    if not any(sequences):
        raise DataError("an importance matrix needs tokens, none given")
    names = gguf_names(model, architecture)
    with torch.inference_mode(), inputs_watched(model, names, _squares) as watched:
        for ids in sequences:
            states_TD = model.base_model(
                input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False
            ).last_hidden_state[0]
            # The head reads these; running it over the vocabulary would tell nothing more.
            watched.sums[head_name(model)] += _squares(states_TD)
    sums = watched.sums | {name: watched.sums[first] for name, first in watched.same.items()}
    tokens = sum(map(len, sequences))
    means = {name: (total / tokens).astype(np.float32) for name, total in sorted(sums.items())}
    return ImportanceMatrix(means, tokens, dataset)


def _squares(inputs_TC: Any) -> Any:
    return inputs_TC.double().pow(2).sum(dim=0).cpu().numpy()


def head_name(model: Any) -> str:
    """GGUF name of the weight that reads the last hidden states."""
    tied = model.config.get_text_config().tie_word_embeddings
    return EMBEDDING if tied else HEAD


def gguf_names(model: Any, architecture: str) -> dict[str, str]:
    """Module name -> GGUF tensor name, for every linear layer of the backbone that has one."""
    import gguf
    from torch import nn

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        raise DataError(f"GGUF architecture {architecture!r} is not one of {sorted(kinds)[:5]}, …")
    blocks = model.config.get_text_config().num_hidden_layers
    table = gguf.get_tensor_name_map(kinds[architecture], blocks)
    named = {
        name: table.get_name(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings()
    }
    missing = sorted(name for name, known in named.items() if known is None)
    if missing or not named:
        raise DataError(f"no GGUF name for {len(missing)} of {len(named)} layers: {missing[:3]}")
    return {name: f"{known}.weight" for name, known in named.items()}


class Watched(NamedTuple):
    """Sums by GGUF name; `same`: a weight whose inputs are those of another, which has the sum."""

    sums: defaultdict[str, Any]
    same: dict[str, str]


@contextmanager
def inputs_watched(
    model: Any, names: Mapping[str, str], measure: Callable[[Any], Any]
) -> Iterator[Watched]:
    """Adds up `measure` of each named module's inputs (T, C) while the context is open."""
    watched = Watched(defaultdict(float), {})
    last: tuple[Any, str] = (None, "")

    def watch(name: str) -> Any:
        def add(_module: Any, inputs: tuple[Any, ...]) -> None:
            nonlocal last
            if inputs[0] is last[0]:
                watched.same[name] = last[1]
                return
            last = (inputs[0], name)
            watched.sums[name] += measure(inputs[0].flatten(0, -2))

        return add

    hooks = [
        model.get_submodule(module).register_forward_pre_hook(watch(name))
        for module, name in names.items()
    ]
    try:
        yield watched
    finally:
        for hook in hooks:
            hook.remove()


def write(matrix: ImportanceMatrix, path: Path) -> None:
    """llama.cpp's GGUF form: sums and counts a weight (tools/imatrix/imatrix.cpp)."""
    import gguf

    writer = gguf.GGUFWriter(path, arch="")
    writer.add_type("imatrix")
    writer.add_array(gguf.Keys.IMatrix.DATASETS, [matrix.dataset])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, 1)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, matrix.tokens)
    for name, means in sorted(matrix.mean_squares.items()):
        writer.add_tensor(name + SUMS, (means * matrix.tokens).reshape(1, -1))
        writer.add_tensor(name + COUNTS, np.full((1, 1), matrix.tokens, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> ImportanceMatrix:
    """Raises DataError for a file that is no importance matrix."""
    import gguf

    from quant.gguf_reader import TensorReader

    try:
        reader = TensorReader(path)
        kind = reader.fields["general.type"].contents()
        dataset = reader.fields[gguf.Keys.IMatrix.DATASETS].contents()[0]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path.name} is not an importance matrix: {error}") from error
    if kind != "imatrix":
        raise DataError(f"{path.name} is a {kind!r} file, not an imatrix")
    tensors = {tensor.name: tensor.data.reshape(-1) for tensor in reader.tensors}
    means = {
        name.removesuffix(SUMS): np.array(sums / tensors[name.removesuffix(SUMS) + COUNTS][0])
        for name, sums in tensors.items()
        if name.endswith(SUMS)
    }
    tokens = max(int(count[0]) for name, count in tensors.items() if name.endswith(COUNTS))
    return ImportanceMatrix(means, tokens, str(dataset))

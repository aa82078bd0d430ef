"""Speculative decoding: a small model of the same vocabulary guesses, the large one checks.

The large model reads a guess in one batch and takes its own token at every place, drawn with the
random number of that place; the first place where that is not the guessed one ends the guess. What
is said is what the large model says alone, only sooner (Leviathan et al. 2023, section 2.3, with
the draws of both models coupled).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.engines.llama_native import DECODE_BATCH_TOKENS, LlamaModel, Row
from serve.engines.prefixes import common_length
from serve.engines.sampling import pick_token
from serve.errors import CannotDo, EngineError
from serve.messages import Sampling


@dataclass(frozen=True, slots=True)
class Wanted:
    """A conversation to go on with: all its ids, `written` of them the answer's, `most` more."""

    slot: int
    ids: Sequence[int]
    sampling: Sampling
    written: int
    most: int


class Draft:
    """The small model, with the slots of the large one. One thread drives both."""

    def __init__(self, path: Path, slots: int, large: LlamaModel, threads: int) -> None:
        self._model = LlamaModel(path, slots, large.context_tokens, threads)
        self._held: list[list[int]] = [[] for _ in range(slots)]
        try:
            _check_pair(self._model, large)
        except EngineError:
            self._model.close()
            raise

    def close(self) -> None:
        self._model.close()

    def guesses(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """For each, how the small model goes on: up to `most` tokens, to an end at most."""
        found: list[list[int]] = [[] for _ in wanted]
        going = {i: w for i, w in enumerate(wanted) if w.most > 0}
        unread = {i: self._unread(w) for i, w in going.items()}
        while going:
            for index, row in self._read({i: (going[i].slot, unread[i]) for i in going}):
                want = going[index]
                position = want.written + len(found[index])
                token = pick_token(self._model.logits(row), want.sampling, position)
                found[index].append(token)
                unread[index] = [token]
                if len(found[index]) == want.most or self._model.ends(token):
                    del going[index]
        return found

    def _unread(self, wanted: Wanted) -> list[int]:
        """Those ids that the slot does not hold; what it holds beside them is forgotten."""
        held = self._held[wanted.slot]
        known = min(common_length(held, wanted.ids), len(wanted.ids) - 1)
        del held[known:]
        self._model.clear_sequence(wanted.slot, known)
        return list(wanted.ids[known:])

    def _read(self, parts: dict[int, tuple[int, list[int]]]) -> Iterator[tuple[int, int]]:
        """Decode every part; (index, row) of each last token, while its logits are there."""
        rows: list[Row] = []
        ends: list[tuple[int, int]] = []
        for index, (slot, ids) in parts.items():
            for i, token in enumerate(ids):
                if len(rows) == DECODE_BATCH_TOKENS:
                    yield from self._decoded(rows, ends)
                    rows, ends = [], []
                last = i == len(ids) - 1
                if last:
                    ends.append((index, len(rows)))
                rows.append(Row(token, len(self._held[slot]), slot, last))
                self._held[slot].append(token)
        yield from self._decoded(rows, ends)

    def _decoded(
        self, rows: Sequence[Row], ends: Sequence[tuple[int, int]]
    ) -> Sequence[tuple[int, int]]:
        self._model.decode(rows)
        return ends


def _check_pair(small: LlamaModel, large: LlamaModel) -> None:
    """Raises CannotDo unless every id is the same token in both, and guesses can be undone."""
    for model in (small, large):
        if not model.forgets():
            raise CannotDo(f"{model.path.name} has recurrent layers: no draft can be taken back")
    count = small.vocabulary_size
    differs = next(
        (i for i in range(count) if small.piece(i, special=True) != large.piece(i, special=True)),
        None,
    )
    if count != large.vocabulary_size or differs is not None:
        what = f"token {differs}" if differs is not None else f"{count} and {large.vocabulary_size}"
        raise CannotDo(
            f"{small.path.name} cannot draft for {large.path.name}: "
            f"their vocabularies differ ({what})"
        )

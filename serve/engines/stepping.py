"""Answers written side by side, a token each at a step: the loop of all engines with batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import count
from typing import Protocol

from serve.engines.answer import Answer
from serve.messages import Sampling

# A smaller block is copied out once this share of its rows, or less, still goes on.
KEPT_ROWS_SHARE = 0.85


class Rows(Protocol):
    """Prompts that were read, and what is written after them."""

    def draw(self, samplings: Sequence[Sampling], position: int) -> list[int]:
        """One token id a row, by that row's own sampling."""
        ...

    def append(self, tokens: Sequence[int]) -> None:
        """One token a row, read at the next step."""
        ...

    def keep(self, rows: Sequence[int]) -> bool:
        """Go on with these rows alone. False, and nothing done, where rows cannot leave."""
        ...


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids (B, T) of prompts that end together, and the mask (B, T) of what is theirs."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + [*prompt] for prompt in prompts]
    return ids, [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]


def steps(
    rows: Rows, answers: list[Answer], ends: Collection[int], context_tokens: int
) -> Iterator[list[Answer]]:
    """All answers after each step, until the last one has its end."""
    inside = answers
    for position in count():
        drawn = rows.draw([answer.request.sampling for answer in inside], position)
        for answer, token in zip(inside, drawn, strict=True):
            if answer.finish is None:
                answer.accept(token, token in ends, context_tokens)
        yield answers
        going = [row for row, answer in enumerate(inside) if answer.finish is None]
        if not going:
            return
        if len(going) <= KEPT_ROWS_SHARE * len(inside) and rows.keep(going):
            inside, drawn = [inside[row] for row in going], [drawn[row] for row in going]
        rows.append(drawn)

"""How a model's answers begin: what it says first each time need not be said token by token.

A student that reasons begins every answer with the same opening tag, which nobody sees. The prompt
is read together with it, and the model's own choices tell how far it holds: what is said is what
the model says alone, only sooner (Leviathan et al. 2023, section 2.3), but for the rounding of a
batch with more rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from serve.engines.prefixes import common_length

# A tag and a line feed are four; a wrong guess costs some rows of one pass.
OPENING_TOKENS = 8


class Openings:
    """Guesses the next answer's first tokens from the last two answers'."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, ...]] = deque(maxlen=2)

    def note(self, ids: Sequence[int], over: bool) -> None:
        """Keep how an answer began: told after every token, heeds one; `over`: it was the last."""
        if len(ids) < OPENING_TOKENS if over else len(ids) == OPENING_TOKENS:
            self._seen.append(tuple(ids))

    def guess(self) -> list[int]:
        """What the last two answers began with in common; empty before there were two."""
        if len(self._seen) < 2:
            return []
        first, second = self._seen
        return list(first[: common_length(first, second)])

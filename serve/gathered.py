"""Pieces of answers, gathered on their way out: a fast model's tokens are told a few at a time.

Each line that is told costs three processes some work: the model's, the server's and the client's.
On a laptop they share the cores that the model computes on, and eyes do not see 25 lines a second
apart from 130.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from serve.conversations import Reply

TELL_EVERY_S = 0.04


class Gathered:
    """What was said and not told yet, one piece an asker. `now_s` is a clock, for tests."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._told_s = 0.0
        self._held: dict[str, Reply] = {}
        # Askers who were told of a token, and of a word.
        self._begun: set[str] = set()
        self._spoken: set[str] = set()

    def forget(self, key: str) -> None:
        """The asker left, or has the last piece."""
        self._held.pop(key, None)
        self._begun.discard(key)
        self._spoken.discard(key)

    def add(self, said: Sequence[tuple[str, Reply]]) -> list[tuple[str, Reply]]:
        """What is to be told now: nothing, or all there is, one piece an asker.

        First tokens, first words and last pieces never wait, others `TELL_EVERY_S` at most, or one
        step of the model where that takes longer.
        """
        urgent = False
        for key, reply in said:
            urgent = self._urgent(key, reply) or urgent
            self._held[key] = _joined(self._held[key], reply) if key in self._held else reply
        if not self._held or not (urgent or self._now_s() - self._told_s >= TELL_EVERY_S):
            return []
        told, self._held, self._told_s = list(self._held.items()), {}, self._now_s()
        for key, reply in told:
            if reply.last:
                self.forget(key)
        return told

    def _urgent(self, key: str, reply: Reply) -> bool:
        text = bool(reply.reasoning or reply.content)
        news = (bool(reply.tokens) and key not in self._begun) or (text and key not in self._spoken)
        if reply.tokens:
            self._begun.add(key)
        if text:
            self._spoken.add(key)
        return news or reply.last or reply.prompt_tokens is not None


def _joined(first: Reply, second: Reply) -> Reply:
    """Two pieces as one; reasoning comes before the answer in every piece."""
    return second.model_copy(
        update={
            "prompt_tokens": first.prompt_tokens,
            "reasoning": first.reasoning + second.reasoning,
            "content": first.content + second.content,
            "tokens": first.tokens + second.tokens,
        }
    )

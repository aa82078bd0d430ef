"""Where a prompt is cut, so that what many prompts begin with is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from serve.messages import Message


class Prompt(NamedTuple):
    """Token ids of a prompt, cut where the part shared by equal leading messages ends."""

    shared: tuple[int, ...]
    own: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.shared) + len(self.own)


class Prompts:
    """Cuts prompts; `prompt_ids` renders and tokenizes a conversation."""

    def __init__(self, prompt_ids: Callable[[Sequence[Message]], list[int]]) -> None:
        self._prompt_ids = prompt_ids
        self._shared_by_lead: dict[tuple[Message, ...], tuple[int, ...]] = {}

    def cut(self, messages: tuple[Message, ...], opening: str = "") -> Prompt:
        ids = tuple(self._prompt_ids(messages))
        for shared in (self._shared_ids(messages, opening), self._shared_ids(messages, "")):
            if shared and ids[: len(shared)] == shared and len(ids) > len(shared):
                return Prompt(shared, ids[len(shared) :])
        return Prompt((), ids)

    def _shared_ids(self, messages: tuple[Message, ...], opening: str) -> tuple[int, ...]:
        """Ids that every conversation with the same leading messages and `opening` begins with.

        Found by rendering two last messages that go on with different characters, never by
        comparing the requests at hand: which ones those are must not change where a prompt is cut.
        """
        lead = (*messages[:-1], Message(role=messages[-1].role, content=opening))
        if lead not in self._shared_by_lead:
            first, second = (
                self._prompt_ids([*lead[:-1], Message(role=lead[-1].role, content=opening + text)])
                for text in ("0", "Zebra")
            )
            self._shared_by_lead[lead] = tuple(first[: common_length(first, second)])
        return self._shared_by_lead[lead]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two lists begin with in common."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def by_lead(messages: tuple[Message, ...]) -> tuple[str, ...]:
    """A sort key for the leading messages that is the same in every process."""
    return tuple(f"{m.role}\0{m.content}" for m in messages[:-1])

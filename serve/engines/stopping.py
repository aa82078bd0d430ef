"""Where an answer's text ends, and how much of an unfinished one is certain."""

from __future__ import annotations

from collections.abc import Sequence


def stop_index(text: str, stop: Sequence[str]) -> int:
    """Where the first of the stop strings begins in `text`; -1 if none is there."""
    found = [index for index in (text.find(s) for s in stop if s) if index >= 0]
    return min(found, default=-1)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    index = stop_index(text, stop)
    return text if index < 0 else text[:index]


def settled_text(text: str, stop: Sequence[str]) -> str:
    """What later tokens cannot change: whole characters, no beginning of a stop string."""
    text = text.rstrip("\ufffd")
    begun = (size for s in stop for size in range(1, len(s)) if text.endswith(s[:size]))
    return text[: len(text) - max(begun, default=0)]


def token_ids(value: int | list[int]) -> tuple[int, ...]:
    """Config files write one end token as a number and several as a list."""
    return tuple(value) if isinstance(value, list) else (int(value),)

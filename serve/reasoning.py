"""Splits an answer into its reasoning (inside `<think>…</think>`) and the rest.

Works on a whole text and on a stream whose tags may be split over chunks. Does not judge anything.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"


class Split(NamedTuple):
    """`closed` is False when a reasoning block was opened and never ended."""

    reasoning: str
    answer: str
    closed: bool


def split_reasoning(text: str) -> Split:
    """Cut `text` at the first closing tag. Without any tag everything is the answer."""
    body = text.lstrip()
    opened = body.startswith(OPEN_TAG)
    inner = body[len(OPEN_TAG) :] if opened else body
    reasoning, tag, answer = inner.partition(CLOSE_TAG)
    if tag:
        return Split(reasoning.strip(), answer.strip(), True)
    if opened:
        return Split(inner.strip(), "", False)
    return Split("", text.strip(), True)


def join_reasoning(reasoning: str, answer: str) -> str:
    """The canonical trace form: the exact text a student is trained to write."""
    return f"{OPEN_TAG}\n{reasoning}\n{CLOSE_TAG}\nAnswer: {answer}"


Part = tuple[Literal["reasoning", "answer"], str]


class ReasoningStream:
    """Feeds chunks in, yields (part, text) out; holds back only what may still become a tag."""

    def __init__(self) -> None:
        self._state: Literal["start", "reasoning", "answer"] = "start"
        self._held = ""

    def feed(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        if self._state == "start":
            body = self._held.lstrip()
            if OPEN_TAG.startswith(body[: len(OPEN_TAG)]) and len(body) < len(OPEN_TAG):
                return parts
            opened = body.startswith(OPEN_TAG)
            self._state = "reasoning" if opened else "answer"
            self._held = body[len(OPEN_TAG) :] if opened else self._held
        if self._state == "reasoning":
            before, tag, after = self._held.partition(CLOSE_TAG)
            kept = 0 if tag else _tag_prefix_length(before)
            emitted = before[: len(before) - kept]
            self._held = after if tag else before[len(before) - kept :]
            if emitted:
                parts.append(("reasoning", emitted))
            if tag:
                self._state = "answer"
        if self._state == "answer" and self._held:
            parts.append(("answer", self._held))
            self._held = ""
        return parts

    def close(self) -> list[Part]:
        """What is still held back when the stream ends."""
        held, self._held = self._held, ""
        return [("reasoning" if self._state == "reasoning" else "answer", held)] if held else []


def _tag_prefix_length(text: str) -> int:
    """How many characters at the end of `text` could be the beginning of the closing tag."""
    longest = min(len(text), len(CLOSE_TAG) - 1)
    return next((n for n in range(longest, 0, -1) if CLOSE_TAG.startswith(text[-n:])), 0)

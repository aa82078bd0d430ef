"""Splits an answer into its reasoning (inside `<think>…</think>`) and the rest.

Works on a whole text and on a stream whose tags may be split over chunks. Reads the thought and
solution tags of Sky-T1 and Bespoke-Stratos as well. Does not judge anything.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Tags(NamedTuple):
    """What stands around the reasoning, and around the answer where a form marks that too."""

    opens: str
    closes: str
    answer_opens: str = ""
    answer_closes: str = ""


THINK = Tags("<think>", "</think>")
THOUGHT = Tags(
    "<|begin_of_thought|>",
    "<|end_of_thought|>",
    "<|begin_of_solution|>",
    "<|end_of_solution|>",
)
OPEN_TAG, CLOSE_TAG = THINK.opens, THINK.closes
TagsName = Literal["think", "thought-solution"]
FORMS: dict[TagsName, Tags] = {"think": THINK, "thought-solution": THOUGHT}


class Split(NamedTuple):
    """`closed` is False when a reasoning block was opened and never ended."""

    reasoning: str
    answer: str
    closed: bool


def tags_of(text: str) -> Tags | None:
    """The form `text` begins or continues in; None without any tag."""
    body = text.lstrip()
    for tags in FORMS.values():
        if body.startswith(tags.opens):
            return tags
    return next((tags for tags in FORMS.values() if tags.closes in body), None)


def split_reasoning(text: str) -> Split:
    """Cut `text` at the first closing tag. Without any tag everything is the answer."""
    tags = tags_of(text)
    if tags is None:
        return Split("", text.strip(), True)
    inner = text.lstrip().removeprefix(tags.opens)
    reasoning, tag, answer = inner.partition(tags.closes)
    if not tag:
        return Split(inner.strip(), "", False)
    for mark in (tags.answer_opens, tags.answer_closes):
        answer = answer.replace(mark, "") if mark else answer
    return Split(reasoning.strip(), answer.strip(), True)


def join_reasoning(reasoning: str, answer: str, tags: Tags = THINK) -> str:
    """The canonical trace form: the exact text a student is trained to write."""
    return f"{only_reasoning(reasoning, tags)}\n{in_answer_tags(f'Answer: {answer}', tags)}"


def only_reasoning(reasoning: str, tags: Tags = THINK) -> str:
    """A closed block of reasoning, and nothing after it."""
    return f"{tags.opens}\n{reasoning}\n{tags.closes}"


def in_answer_tags(answer: str, tags: Tags) -> str:
    """`answer` as the form marks it; as it is where the form does not."""
    return f"{tags.answer_opens}\n{answer}\n{tags.answer_closes}" if tags.answer_opens else answer


Part = tuple[Literal["reasoning", "answer"], str]


class ReasoningStream:
    """Feeds chunks in, yields (part, text) out; holds back only what may still become a tag."""

    def __init__(self, opened: Tags | None = None) -> None:
        """`opened`: the prompt ended with this opening tag, so the text begins inside it."""
        self._state: Literal["start", "reasoning", "answer"] = "reasoning" if opened else "start"
        self.tags = opened or THINK
        self._held = ""

    @property
    def part(self) -> Literal["start", "reasoning", "answer"]:
        """Where the text stands; `start` until it is known how it begins."""
        return self._state

    @property
    def held(self) -> str:
        """What was fed and not yielded yet."""
        return self._held

    def feed(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        if self._state == "start" and not self._begun():
            return parts
        if self._state == "reasoning":
            before, tag, after = self._held.partition(self.tags.closes)
            kept = 0 if tag else _tag_prefix_length(before, self.tags.closes)
            emitted = before[: len(before) - kept]
            self._held = after if tag else before[len(before) - kept :]
            if emitted:
                parts.append(("reasoning", emitted))
            if tag:
                self._state = "answer"
        if self._state == "answer" and (emitted := self._answer()):
            parts.append(("answer", emitted))
        return parts

    def _begun(self) -> bool:
        """Whether it is known how the text begins; sets state and tags."""
        body = self._held.lstrip()
        for tags in FORMS.values():
            if body.startswith(tags.opens):
                self._state, self.tags = "reasoning", tags
                self._held = body[len(tags.opens) :]
                return True
        if any(tags.opens.startswith(body) for tags in FORMS.values()):
            return False
        self._state = "answer"
        return True

    def _answer(self) -> str:
        """What of the answer can be shown, without its tags."""
        kept = 0
        for tag in filter(None, (self.tags.answer_opens, self.tags.answer_closes)):
            self._held = self._held.replace(tag, "")
            kept = max(kept, _tag_prefix_length(self._held, tag))
        end = len(self._held) - kept
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def close(self) -> list[Part]:
        """What is still held back when the stream ends."""
        held, self._held = self._held, ""
        return [("reasoning" if self._state == "reasoning" else "answer", held)] if held else []


def _tag_prefix_length(text: str, tag: str) -> int:
    """How many characters at the end of `text` could be the beginning of `tag`."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if tag.startswith(text[-n:])), 0)

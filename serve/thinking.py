"""How long a model thinks: one answer's text as it comes, and when it is made to go on otherwise.

A budget closes the reasoning for the model after so many tokens; waits put its end off ("Wait", s1,
arXiv 2501.19393, section 3.1). Asks nobody: it says what the answer should begin with instead.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from serve.messages import Chunk
from serve.reasoning import THINK, Part, ReasoningStream, Tags

WAIT = "Wait"
ReplyFinish = Literal["stop", "length", "reasoning_unclosed"]


class Turn(NamedTuple):
    """What one chunk shows. `begun`: the answer goes on from this text, and not from its own."""

    parts: list[Part]
    begun: str | None = None
    finish: ReplyFinish | None = None


class Thinking:
    """One answer. `opened` is the tag its prompt ended with, if any; `usual` the model's own.

    `budget` is in tokens of reasoning; 0 leaves no room for any.
    """

    def __init__(
        self, opened: Tags | None, budget: int | None, waits: int, usual: Tags = THINK
    ) -> None:
        self._stream, self._usual = ReasoningStream(opened), usual
        self._budget, self._waits = budget, waits
        self._text = ""
        self._thought = opened is not None
        self._trims = {"reasoning": _Trim(), "answer": _Trim()}
        self.reasoning_tokens = 0

    def begin(self) -> str:
        """What the answer begins with already."""
        if self._budget != 0:
            return ""
        opens, tags = ("", self._stream.tags) if self._thought else (self._usual.opens, self._usual)
        self._take(f"{opens}\n\n{tags.closes}\n")
        return self._text

    def feed(self, chunk: Chunk) -> Turn:
        before = self._stream.part
        parts = self._take(chunk.text)
        after = self._stream.part
        if "reasoning" in (before, after):
            self._thought = True
            self.reasoning_tokens += chunk.tokens
        closed = after == "answer" and before != "answer" and self._thought
        if closed and self._waits > 0 and not self._spent() and chunk.finish != "length":
            return self._put_off(parts)
        if after == "reasoning" and self._spent() and chunk.finish is None:
            return self._close(parts)
        finish: ReplyFinish | None = chunk.finish
        if finish:
            if after == "reasoning" and finish == "stop":
                finish = "reasoning_unclosed"
            parts = [*parts, *self._stream.close()]
        return Turn(self._trimmed(parts), finish=finish)

    def _take(self, text: str) -> list[Part]:
        self._text += text
        return self._stream.feed(text)

    def _spent(self) -> bool:
        return self._budget is not None and self.reasoning_tokens >= self._budget

    def _put_off(self, parts: list[Part]) -> Turn:
        """The closing tag, and what came after it, are taken back."""
        self._waits -= 1
        tags = self._stream.tags
        thought = self._text.partition(tags.closes)[0]
        more = ("" if thought.endswith("\n") else "\n") + WAIT
        self._text, self._stream = thought + more, ReasoningStream(tags)
        kept = [part for part in parts if part[0] == "reasoning"]
        return Turn(self._trimmed([*kept, ("reasoning", more)]), begun=self._text)

    def _close(self, parts: list[Part]) -> Turn:
        """What may have become a closing tag goes with the budget."""
        held = len(self._stream.held)
        self._text = self._text[: len(self._text) - held].rstrip()
        tags = self._stream.tags
        self._stream = ReasoningStream(tags)
        self._take(f"\n{tags.closes}\n")
        return Turn(self._trimmed(parts), begun=self._text)

    def _trimmed(self, parts: list[Part]) -> list[Part]:
        told = [(name, self._trims[name].feed(text)) for name, text in parts]
        return [(name, text) for name, text in told if text]


class _Trim:
    """A text without the white space around it, piece by piece."""

    def __init__(self) -> None:
        self._space, self._begun = "", False

    def feed(self, text: str) -> str:
        body = (self._space + text) if self._begun else text.lstrip()
        told = body.rstrip()
        self._space = body[len(told) :]
        self._begun = self._begun or bool(told)
        return told

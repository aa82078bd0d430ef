"""The records that stages hand each other, one self-contained JSON line each."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field

from serve.messages import Completion, Record

Reason = Literal[
    "correct",
    "wrong",
    "no_answer",
    "truncated",
    "verifier_timeout",
    "verifier_error",
]


def content_key(*parts: Any) -> str:
    """sha256 of JSON content: equal content, equal key, whatever the order of fields."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class Problem(Record):
    """One question, its reference answer, and who says whether an answer is right.

    `scorer` is `gym:FAMILY` (the family's own scorer reads `entry`), `math` (math-verify),
    `contains` (the reference stands in the answer as whole words), or `choice` (its letter).
    """

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    family: str = Field(min_length=1)
    scorer: str = "math"
    entry: dict[str, Any] = Field({}, description="what the family's scorer needs")

    @property
    def key(self) -> str:
        """Never depends on order, position or seed: the same question is the same problem."""
        return content_key(self.family, self.question, self.answer)


class Verdict(Record):
    """`passed` is None when it could not be judged: reported apart, never counted as wrong."""

    passed: bool | None
    reason: Reason
    extracted: str | None
    verifier: str


class Trace(Record):
    """One judged answer of one model to one problem, with all it takes to read it alone."""

    key: str
    problem: Problem
    sample: int = Field(ge=0)
    model: str
    prompt_sha256: str
    completion: Completion
    verdict: Verdict


class Example(Record):
    """One supervised example: the student's prompt as turns, and the text it learns to write.

    `trace`: the key of the trace it was made of, if it was made of one.
    """

    key: str
    family: str
    prompt: tuple[dict[str, str], ...]
    completion: str
    trace: str = ""


class General(Record):
    """A prompt that asks for no reasoning, and what to say to it."""

    prompt: str = Field(min_length=1)
    response: str = ""

    @property
    def key(self) -> str:
        return content_key("general", self.prompt)

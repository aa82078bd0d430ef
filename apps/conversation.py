"""What both faces of the chat share: which models a folder holds, and how an answer streams.

Reads a run folder. Knows nothing of Gradio or terminals.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from serve.engines import load_engine
from serve.engines.base import Engine
from serve.errors import DataError
from serve.messages import Message, Sampling
from serve.models import resolve_model
from serve.reasoning import ReasoningStream

CONTEXT_TOKENS = 2048


@dataclass(frozen=True)
class Speaker:
    """One model that can answer: its name, its file, and the turns put before the question."""

    name: str
    engine: str
    location: str
    sha256: str | None
    lead: tuple[Message, ...]

    def messages(self, question: str) -> tuple[Message, ...]:
        return (*self.lead, Message(role="user", content=question))


@dataclass(frozen=True)
class Said:
    """What has been said so far, and how fast."""

    reasoning: str
    answer: str
    tokens: int
    tokens_per_s: float
    first_token_s: float
    finished: bool


def speakers(run: Path) -> list[Speaker]:
    """Everyone in the run's `chat.json`, teacher first. Raises DataError for an unfinished run."""
    try:
        entries = json.loads((run / "chat.json").read_text(encoding="utf-8"))["speakers"]
        return [
            Speaker(
                name=entry["name"],
                engine=entry["engine"],
                location=_absolute(entry["model"], run),
                sha256=entry["sha256"],
                lead=tuple(Message.model_validate(turn) for turn in entry["lead"]),
            )
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run} holds no finished student: {error}", hint="run python -m pipeline.all first"
        ) from error


def _absolute(model: str, run: Path) -> str:
    """`path:` references of the catalogue are relative to the run folder."""
    kind, _, rest = model.partition(":")
    return f"path:{run / rest}" if kind == "path" and not Path(rest).is_absolute() else model


@lru_cache(maxsize=4)
def opened(speaker: Speaker) -> Engine:
    """The speaker's engine, its file hashed before it loads, kept open for the next question."""
    path = resolve_model(speaker.location, speaker.sha256)
    return load_engine(speaker.engine, path=path, slots=4, context_tokens=CONTEXT_TOKENS)


def say(speaker: Speaker, question: str, sampling: Sampling) -> Iterator[Said]:
    """Stream one answer, reasoning and answer apart, with the rate so far."""
    engine = opened(speaker)
    started_s = time.monotonic()
    stream = ReasoningStream()
    texts = {"reasoning": "", "answer": ""}
    tokens, first_token_s = 0, 0.0
    for chunk in engine.stream(speaker.messages(question), sampling):
        now_s = time.monotonic() - started_s
        first_token_s = first_token_s or now_s
        tokens += chunk.tokens
        for part, text in stream.feed(chunk.text) if chunk.text else []:
            texts[part] += text
        if chunk.finish:
            for part, text in stream.close():
                texts[part] += text
        since_first_s = now_s - first_token_s
        yield Said(
            reasoning=texts["reasoning"].strip(),
            answer=texts["answer"].strip(),
            tokens=tokens,
            tokens_per_s=(tokens - 1) / since_first_s if since_first_s > 0 and tokens > 1 else 0.0,
            first_token_s=first_token_s,
            finished=chunk.finish is not None,
        )

"""What both faces of the chat share: how one question is answered by several models at once.

Knows nothing of Gradio or terminals. Each model runs in a process of its own.
"""

from __future__ import annotations

import queue
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve.catalogue import Entry, read_catalogue
from serve.conversations import Ask, Reply
from serve.errors import DataError, EngineError
from serve.model_process import ModelProcess, Settings
from serve.pool import Pool

CONTEXT_TOKENS = 2048
SLOTS, QUEUE = 4, 16
# Nobody reads faster, and showing costs the models their cores.
SHOWN_EVERY_S = 0.1
SILENCE_LIMIT_S = 300.0


@dataclass(frozen=True)
class Said:
    """What one model has said so far, and how fast: the rate is that of the tokens after the first
    piece, which may hold several (`first_tokens`). `problem`: why it says no more."""

    reasoning: str = ""
    answer: str = ""
    tokens: int = 0
    tokens_per_s: float = 0.0
    first_token_s: float = 0.0
    first_tokens: int = 0
    finish: str | None = None
    problem: str | None = None

    @property
    def over(self) -> bool:
        return self.finish is not None or self.problem is not None

    @property
    def text(self) -> str:
        return f"{self.reasoning}\n{self.answer}".strip()

    def after(self, reply: Reply, since_s: float) -> Said:
        """With one more piece, that came `since_s` after the question."""
        if reply.error is not None:
            return replace(self, problem=reply.error)
        first_s, first_tokens = self.first_token_s, self.first_tokens
        if not first_s and (reply.tokens or reply.finish):
            first_s, first_tokens = since_s, reply.tokens
        tokens, writing_s = self.tokens + reply.tokens, since_s - first_s
        return Said(
            reasoning=self.reasoning + reply.reasoning,
            answer=self.answer + reply.content,
            tokens=tokens,
            tokens_per_s=(tokens - first_tokens) / writing_s if first_s and writing_s > 0 else 0.0,
            first_token_s=first_s,
            first_tokens=first_tokens,
            finish=reply.finish,
        )


def say(models: Sequence[ModelProcess], question: str, options: Ask) -> Iterator[list[Said]]:
    """All models answer at once; yields what each has said, ten times a second and at the end.

    A model that is still loading begins when it is ready; one that fails says why while the others
    go on. Closing the iterator frees all of them.
    """
    pieces: queue.SimpleQueue[tuple[int, Reply, float]] = queue.SimpleQueue()
    said = [Said() for _ in models]
    waiting = dict(enumerate(models))
    begun: dict[int, tuple[str, float]] = {}
    heard_s = time.monotonic()
    try:
        while not all(one.over for one in said):
            for index, model in list(waiting.items()):
                if model.state != "loading":
                    del waiting[index]
                    key = secrets.token_hex(12)
                    begun[index] = (key, time.monotonic())
                    ask = options.model_copy(update=_of(model.entry, question))
                    said[index] = _asked(model, key, ask, _into(pieces, index))
            time.sleep(SHOWN_EVERY_S)
            while not pieces.empty():
                index, reply, at_s = pieces.get()
                said[index] = said[index].after(reply, at_s - begun[index][1])
                heard_s = time.monotonic()
            if not waiting and time.monotonic() - heard_s > SILENCE_LIMIT_S:
                told = f"gave no sign for {SILENCE_LIMIT_S:g} s"
                said = [one if one.over else replace(one, problem=told) for one in said]
            yield list(said)
    finally:
        for index, (key, _) in begun.items():
            models[index].cancel(key)


def _of(entry: Entry, question: str) -> dict[str, Any]:
    return {"messages": entry.messages(question), "tags": entry.tags}


def _into(
    pieces: queue.SimpleQueue[tuple[int, Reply, float]], index: int
) -> Callable[[Reply], None]:
    return lambda reply: pieces.put((index, reply, time.monotonic()))


def _asked(model: ModelProcess, key: str, ask: Ask, tell: Callable[[Reply], None]) -> Said:
    try:
        model.ask(key, ask, tell)
    except EngineError as error:
        return Said(problem=str(error.args[0]))
    return Said()


def models_of(folder: Path) -> Pool:
    """The models a folder holds, none of them loaded yet. Raises DataError when there is none."""
    entries = read_catalogue(folder)
    if not entries:
        raise DataError(f"{folder} holds no model to talk to")
    return Pool(entries, Settings(SLOTS, QUEUE, CONTEXT_TOKENS))


def first_difference(first: Said, second: Said) -> int | None:
    """Where in `first` the first word begins that `second` does not have there.

    None where there is none yet: the end of an answer that still goes on differs from nothing.
    """
    ours, theirs = (list(re.finditer(r"\S+", said.text)) for said in (first, second))
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one[0] == other[0]:
            continue
        growing = (
            index == len(ours) - 1 and not first.over and other[0].startswith(one[0]),
            index == len(theirs) - 1 and not second.over and one[0].startswith(other[0]),
        )
        return None if any(growing) else one.start()
    more = len(ours) > len(theirs) and second.over
    return ours[len(theirs)].start() if more else None

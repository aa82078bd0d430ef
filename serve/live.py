"""Many people at one model: questions come and leave while others are being answered.

`Live` is what a server drives; an engine that cannot batch by itself is driven by `Streams`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from serve.engines import engine_module, load_engine
from serve.engines.blocks import BlockEngine
from serve.errors import EngineError, RetortError, UsageError
from serve.messages import Chunk, Message, Request

LIVE = {"llama.cpp": "serve.engines.llama_live"}


class Live(Protocol):
    """One loaded model. Not safe for several threads: one loop admits, steps and cancels."""

    name: str
    # What its owner should know of how it was opened.
    note: str
    context_tokens: int

    def free(self) -> int:
        """How many more requests can be admitted now."""
        ...

    def admit(self, key: str, request: Request) -> int:
        """Begin an answer; the number of tokens of its prompt. Raises EngineError."""
        ...

    def cancel(self, key: str) -> None:
        """Forget an answer. Its slot is free at once; a key that is not there is no error."""
        ...

    def step(self) -> list[tuple[str, Chunk | EngineError]]:
        """A token for everyone being answered; the chunks that became certain by it.

        An error ends the answer that met it and no other. Raises EngineError when all have ended.
        """
        ...

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What the chat template makes of a conversation; empty where nobody knows."""
        ...

    def close(self) -> None: ...


def load_live(name: str, slots: int, threads: int | None, **options: Any) -> Live:
    """The engine called `name`, for at most `slots` people at a time.

    `threads` is heeded by engines that batch; none: as many as there are cores.
    """
    if name in LIVE:
        live: Live = engine_module(LIVE[name]).load_live(slots=slots, threads=threads, **options)
        return live
    engine = load_engine(name, **options)
    if not isinstance(engine, BlockEngine):
        engine.close()
        raise UsageError(f"{engine.name} answers batches only: it cannot be served")
    return Streams(engine, slots)


class Streams:
    """An engine that cannot batch its streams: they take turns, a token each."""

    def __init__(self, engine: BlockEngine, slots: int) -> None:
        self.name, self.context_tokens = engine.name, engine.context_tokens
        self.note = ""
        self._engine, self._slots = engine, slots
        self._streams: dict[str, Iterator[Chunk]] = {}

    def free(self) -> int:
        return self._slots - len(self._streams)

    def admit(self, key: str, request: Request) -> int:
        prompt = self._engine.request_ids(request)
        self._streams[key] = self._engine.stream_after(prompt, request)
        return len(prompt)

    def cancel(self, key: str) -> None:
        stream = self._streams.pop(key, None)
        close = getattr(stream, "close", None)  # a generator's; ends the work
        if close is not None:
            close()

    def step(self) -> list[tuple[str, Chunk | EngineError]]:
        found: list[tuple[str, Chunk | EngineError]] = []
        for key, stream in list(self._streams.items()):
            try:
                chunk = next(stream)
            except Exception as error:  # runtimes raise classes of their own
                self.cancel(key)
                said = error.args[0] if isinstance(error, RetortError) else str(error)
                found.append((key, EngineError(f"{self.name}: {said or type(error).__name__}")))
                continue
            if chunk.finish:
                self.cancel(key)
            found.append((key, chunk))
        return found

    def prompt_text(self, messages: Sequence[Message]) -> str:
        template = self._engine.template
        return template.render(messages) if template is not None else ""

    def close(self) -> None:
        for key in list(self._streams):
            self.cancel(key)
        self._engine.close()

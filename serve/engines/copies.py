"""Several copies of one engine, each in a process of its own, as one engine.

What is asked is dealt out to all copies at once; answers come back in the order they are written.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from serve.engines.base import Engine, LogitsTV
from serve.messages import Chunk, Completion, Grade, Message, Request, TokenScores

# An answer, an error, or that a copy has said everything.
Told = tuple[str, Completion] | Exception | None


class Copies:
    """Engines that answer alike. What only one need say, the first one says."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines, self._threads = list(engines), list[threading.Thread]()
        first = self._engines[0]
        self.name, self.batch_invariant, self.block = first.name, first.batch_invariant, first.block

    def close(self) -> None:
        for engine in self._engines:
            engine.close()

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        """Raises the first error of any copy; whoever leaves before the end stops them all."""
        told: queue.Queue[Told] = queue.Queue()
        left = threading.Event()
        self._wait_out()
        self._threads = [
            threading.Thread(target=_tell, args=(engine, share, told.put, left), daemon=True)
            for engine, share in self._dealt(requests)
        ]
        for thread in self._threads:
            thread.start()
        try:
            talking = len(self._threads)
            while talking:
                said = told.get()
                if isinstance(said, Exception):
                    raise said
                if said is None:
                    talking -= 1
                else:
                    yield said
        finally:
            left.set()

    def grade(self, requests: Sequence[Request], top: int) -> list[Grade]:
        self._wait_out()
        shares, grades = self._dealt(requests), dict[str, Grade]()
        with ThreadPoolExecutor(len(self._engines)) as pool:
            graded = pool.map(lambda dealt: dealt[0].grade(dealt[1], top), shares)
            for (_, share), part in zip(shares, graded, strict=True):
                grades |= {request.key: grade for request, grade in zip(share, part, strict=True)}
        return [grades[request.key] for request in requests]

    def stream(self, request: Request) -> Iterator[Chunk]:
        self._wait_out()
        yield from self._engines[0].stream(request)

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        self._wait_out()
        return self._engines[0].score(messages, completion)

    def vocabulary(self) -> list[bytes | None]:
        self._wait_out()
        return self._engines[0].vocabulary()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        self._wait_out()
        return self._engines[0].prompt_ids(messages)

    def end_ids(self) -> tuple[int, ...]:
        self._wait_out()
        return self._engines[0].end_ids()

    def logits(self, ids: Sequence[int]) -> LogitsTV:
        self._wait_out()
        return self._engines[0].logits(ids)

    def _dealt(self, requests: Sequence[Request]) -> list[tuple[Engine, Sequence[Request]]]:
        """Every copy that has a share, with it: card by card, as long answers come together."""
        count = len(self._engines)
        dealt = [(engine, requests[i::count]) for i, engine in enumerate(self._engines)]
        return [(engine, share) for engine, share in dealt if share]

    def _wait_out(self) -> None:
        """A child's pipe has one reader: threads of an answer that was left end first."""
        for thread in self._threads:
            thread.join()
        self._threads = []


def _tell(
    engine: Engine, share: Sequence[Request], tell: Callable[[Told], None], left: threading.Event
) -> None:
    """A thread's work."""
    try:
        for answered in engine.generate(share):
            if left.is_set():
                return
            tell(answered)
    except Exception as error:
        tell(error)
    else:
        tell(None)

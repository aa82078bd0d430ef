"""A completion in progress: the same end rules and the same text in every engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from serve.engines.stopping import cut_at_stop, settled_text, stop_index
from serve.errors import EngineError
from serve.messages import Chunk, Completion, Finish, Request, Timing


@dataclass
class Answer:
    """Mutable. `decode` turns the ids so far into text; half a character becomes U+FFFD."""

    request: Request
    prompt_tokens: int
    decode: Callable[[Sequence[int]], str]
    started_s: float = field(default_factory=time.monotonic)
    ids: list[int] = field(default_factory=list)
    first_token_s: float = 0.0
    finish: Finish | None = None

    def accept(self, token: int, ends: bool, context_tokens: int) -> None:
        """Take the next token and see whether the answer is over; `ends`: it is an end token."""
        self.first_token_s = self.first_token_s or time.monotonic() - self.started_s
        if ends:
            self.finish = "stop"
            return
        self.ids.append(token)
        sampling = self.request.sampling
        if sampling.stop and stop_index(self.decode(self.ids), sampling.stop) >= 0:
            self.finish = "stop"
        elif (
            len(self.ids) >= sampling.max_tokens
            or self.prompt_tokens + len(self.ids) >= context_tokens
        ):
            self.finish = "length"

    def settled(self) -> str:
        """The text that later tokens cannot change; all of it once the answer is over."""
        text, stop = self.decode(self.ids), self.request.sampling.stop
        return cut_at_stop(text, stop) if self.finish else settled_text(text, stop)

    def completion(self) -> Completion:
        return Completion(
            text=self.settled(),
            ids=tuple(self.ids),
            finish=self.finish or "length",
            prompt_tokens=self.prompt_tokens,
            completion_tokens=len(self.ids),
            timing=Timing(
                first_token_s=self.first_token_s, total_s=time.monotonic() - self.started_s
            ),
        )


def check_length(prompt_tokens: int, context_tokens: int, engine: str, request: Request) -> None:
    """Raises EngineError for a prompt that leaves no room for an answer."""
    if prompt_tokens >= context_tokens:
        raise EngineError(
            f"prompt of {prompt_tokens} tokens does not fit {context_tokens} tokens "
            f"({engine}, request {request.key})",
            hint="raise context_tokens",
        )


def chunks(steps: Iterable[Answer]) -> Iterator[Chunk]:
    """The pieces of one answer, given as it stands after each token."""
    sent, counted = 0, 0
    for answer in steps:
        text = answer.settled()
        if len(text) > sent:
            yield Chunk(text=text[sent:], tokens=len(answer.ids) - counted)
            sent, counted = len(text), len(answer.ids)
        if answer.finish:
            yield Chunk(tokens=len(answer.ids) - counted, finish=answer.finish)
            return

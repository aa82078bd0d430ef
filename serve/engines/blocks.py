"""What engines have in common that answer a block of prompts side by side, row by row.

An engine says how its prompts become rows, and how text becomes ids and back; the order of work,
the end rules, the stream and the scores are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence

from serve.engines.answer import Answer, check_length, chunks
from serve.engines.base import LogitsTV
from serve.engines.scoring import Grader, scores_of
from serve.engines.stepping import Rows, steps
from serve.errors import CannotDo, EngineError
from serve.messages import Chunk, Completion, Grade, Message, Request, TokenScores
from serve.template import ChatTemplate

# Of a GPU's memory, what keys and values of answers may fill: weights and logits want the rest.
CACHE_SHARE = 0.5


class BlockEngine(ABC):
    """At most `block` requests at a time. Answers depend on their company by rounding."""

    batch_invariant = False
    template: ChatTemplate | None = None

    def __init__(self, name: str, block: int, ends: Collection[int], context_tokens: int) -> None:
        self.name, self.block = name, block
        self._ends = frozenset(ends)
        self.context_tokens = context_tokens

    @abstractmethod
    def prompt_ids(self, messages: Sequence[Message]) -> list[int]: ...

    @abstractmethod
    def logits(self, ids: Sequence[int]) -> LogitsTV: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _rows(self, prompts: Sequence[list[int]], answer_tokens: int) -> Rows:
        """Read the prompts; at most `answer_tokens` will be written after each."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str: ...

    def _room(self, tokens: int) -> int:
        """How many sequences of so many tokens there is memory for, at least one."""
        return self.block

    def end_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self._ends))

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        """Prompts of like length share a block, so that little is padded."""
        prompts = {r.key: self.request_ids(r) for r in requests}
        ordered = sorted(requests, key=lambda r: len(prompts[r.key]))
        longest = max((len(prompts[r.key]) + r.sampling.max_tokens for r in requests), default=1)
        together = min(self.block, self._room(longest))
        for start in range(0, len(ordered), together):
            block, told = ordered[start : start + together], set[str]()
            for answers in self._steps(block, [prompts[r.key] for r in block]):
                # As they end: a block of long answers would be silent for an hour.
                ended = [a for a in answers if a.finish and a.request.key not in told]
                yield from [(answer.request.key, answer.completion()) for answer in ended]
                told |= {answer.request.key for answer in ended}

    def stream(self, request: Request) -> Iterator[Chunk]:
        yield from self.stream_after(self.request_ids(request), request)

    def stream_after(self, prompt: list[int], request: Request) -> Iterator[Chunk]:
        """Of a request whose `request_ids` are known."""
        return chunks(answer for (answer,) in self._steps([request], [prompt]))

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        prompt, ids = self.prompt_ids(messages), self._encode(completion)
        return scores_of(
            ids, self._byte_ends(ids), self.logits([*prompt, *ids])[len(prompt) - 1 : -1]
        )

    def grade(self, requests: Sequence[Request], top: int) -> list[Grade]:
        return [self._grade_one(request, top) for request in requests]

    def _grade_one(self, request: Request, top: int) -> Grade:
        prompt, ids = self.prompt_ids(request.messages), self._encode(request.begun)
        grader = Grader(ids, self._byte_ends(ids), self.end_ids(), top)
        for logits_V in self.logits([*prompt, *ids])[len(prompt) - 1 :]:
            grader.add(logits_V)
        return grader.grade(len(prompt) + len(ids))

    def vocabulary(self) -> list[bytes | None]:
        raise CannotDo(f"{self.name} does not say what its tokens are")

    def _byte_ends(self, ids: Sequence[int]) -> list[int]:
        return [len(self._decode(ids[: i + 1]).encode()) for i in range(len(ids))]

    def request_ids(self, request: Request) -> list[int]:
        """What is read before the first token. Raises EngineError where no room is left for one."""
        prompt = self.prompt_ids(request.messages) if request.messages else []
        if request.begun:
            prompt = [*prompt, *self._encode(request.begun)]
        if not prompt:
            raise EngineError(f"an empty prompt cannot be answered ({self.name})")
        check_length(len(prompt), self.context_tokens, self.name, request)
        return prompt

    def _steps(
        self, requests: Sequence[Request], prompts: Sequence[list[int]]
    ) -> Iterator[list[Answer]]:
        """All answers after each step, until the last one has its end."""
        answers = [
            Answer(request, len(prompt), self._decode)
            for request, prompt in zip(requests, prompts, strict=True)
        ]
        longest = max(request.sampling.max_tokens for request in requests)
        yield from steps(self._rows(prompts, longest), answers, self._ends, self.context_tokens)

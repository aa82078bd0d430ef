"""Answers of an append-only log by key. In memory are their places in the file alone: a hundred
thousand long ones would fill a machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.store import AppendLog, placed_records, record_at
from serve.messages import Completion, Record, Request


class Answer(Record):
    """One acknowledged answer. Without timing: a resumed run must hold the same bytes."""

    key: str
    completion: Completion


class KeptAnswers(Mapping[str, Completion]):
    """Those of earlier runs and those added. `tokens` counts what was written in all of them."""

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path)
        self._places: dict[str, int] = {}
        self.tokens = 0
        # Of answers that a limit ended: their own tokens, and those with the prompt.
        self._cut: dict[str, tuple[int, int]] = {}
        for place, answer in placed_records(path, Answer):
            self._count(answer, place)

    def close(self) -> None:
        """Of the writing side; answers can be read after it."""
        self._log.close()

    def add(self, key: str, completion: Completion) -> None:
        """Acknowledge an answer; of two by one key the last stands."""
        answer = Answer(key=key, completion=completion.model_copy(update={"timing": None}))
        self._count(answer, self._log.append([answer]))

    def _count(self, answer: Answer, place: int) -> None:
        self.tokens += answer.completion.completion_tokens * (answer.key not in self._places)
        self._places[answer.key] = place
        said = answer.completion
        self._cut.pop(answer.key, None)
        if said.finish == "length":
            whole = said.prompt_tokens + said.completion_tokens
            self._cut[answer.key] = (said.completion_tokens, whole)

    def wants_room(self, request: Request, context_tokens: int) -> bool:
        """Whether the context ended an answer to it, and there would be more of that now."""
        own, whole = self._cut.get(request.key, (request.sampling.max_tokens, 0))
        return own < request.sampling.max_tokens and whole < context_tokens

    def __getitem__(self, key: str) -> Completion:
        return record_at(self._log.path, self._places[key], Answer).completion

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

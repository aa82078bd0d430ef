"""The teacher's part of practice: grades and continuations, each kept the moment it is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.attempts import Attempt
from pipeline.batches import batches_of, openings_of, with_openings
from pipeline.forecast_memory import grading_context
from pipeline.kept_answers import KeptAnswers
from pipeline.methods.graded import text_for_teacher
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.prompts import teacher_messages
from pipeline.recipe import TeacherOptions
from pipeline.records import Problem
from pipeline.store import AppendLog, placed_records, record_at
from pipeline.teacher import open_teacher
from serve.engines.base import Engine
from serve.errors import CannotDo
from serve.messages import Completion, Grade, Message, Record, Request

# Graded in one call: what is graded together agrees to the last bit only if asked together again.
# vLLM fills a GPU with many texts; llama.cpp goes on from as many as it has slots for.
GROUP, VLLM_GROUP = 32, 64
GRADING_SLOTS = 8
# Problems of one family share a prompt's beginning; every block has some of each.
MOST_PREFIXES = 8


class GradeGroup(Record):
    """The grades of one call, in the order of `keys`."""

    keys: tuple[str, ...]
    grades: tuple[Grade, ...]

    @property
    def read_tokens(self) -> int:
        return sum(grade.read_tokens for grade in self.grades)


class Grading:
    """The teacher, opened when something is missing, and the logs of what it said.

    A teacher that grades needs few sequences; one that goes on from prefixes as many as ever. How
    questions begin is taken over all `practice`: taken over a block it would be another in each,
    and the worked examples before it would be read again.
    """

    def __init__(
        self,
        teacher: TeacherOptions,
        options: OnPolicyOptions,
        practice: Iterable[Problem],
        scratch: Path,
    ) -> None:
        self._teacher, self._options = teacher, options
        problems = list(practice)
        self._openings = openings_of(map(self._asked, problems))
        self._longest_bytes = max((len(p.question.encode()) for p in problems), default=0)
        self._engine: Engine | None = None
        self._grades = AppendLog(scratch / "grades.jsonl")
        self._said = KeptAnswers(scratch / "continuations.jsonl")
        # Asked once: a server that does not grade is not asked again in every block.
        self._cannot: CannotDo | None = None
        # Keys of the group that llama.cpp's slots hold.
        self._held: tuple[str, ...] = ()
        # Where the groups that a killed run left begin in the log: a grade is 2 KB a token in
        # memory, of the tokens of a whole practice.
        self._places: dict[tuple[str, ...], int] = {}
        self._read_tokens = 0
        for place, group in placed_records(self._grades.path, GradeGroup):
            self._places[group.keys] = place
            self._read_tokens += group.read_tokens

    def __enter__(self) -> Grading:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._grades.close()
        self._said.close()
        if self._engine is not None:
            self._engine.close()

    @property
    def tokens(self) -> int:
        """What the teacher has read and written so far, killed attempts at it included."""
        return self._read_tokens + self._said.tokens

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            options = self._options
            goes_on = options.method == "recover" or options.continuations
            many = goes_on or self._teacher.engine in ("http", "vllm")
            slots = self._teacher.slots if many else GRADING_SLOTS
            share = self._teacher.practice_memory_share
            changed: dict[str, Any] = {"slots": slots, "memory_share": share}
            if self._teacher.engine == "vllm":  # a share holds a sequence of full length, or none
                longest = self._longest_bytes
                context = grading_context(self._teacher, options.max_tokens, longest)
                changed["context_tokens"] = context
            teacher = self._teacher.model_copy(update=changed)
            prefixes = min(MOST_PREFIXES, max(1, len(self._openings)))
            self._engine = open_teacher(teacher, prefixes=prefixes)
        return self._engine

    def messages_of(self, attempt: Attempt) -> tuple[Message, ...]:
        """The teacher is asked in its own prompt style."""
        return self._asked(attempt.problem)

    def _asked(self, problem: Problem) -> tuple[Message, ...]:
        return teacher_messages(self._teacher, problem.question, problem.family)

    def groups(self, attempts: Sequence[Attempt]) -> list[list[Attempt]]:
        """What is graded together. An attempt of tags alone is not.

        Attempts at one family's problems are neighbours: their prompts begin alike.
        """
        ordered = sorted(attempts, key=lambda a: (a.problem.family, a.key))
        asked = [a for a in ordered if text_for_teacher(a.completion.text, self._teacher)[0]]
        size = VLLM_GROUP if self._teacher.engine == "vllm" else GROUP
        return [asked[start : start + size] for start in range(0, len(asked), size)]

    def grades(self, group: Sequence[Attempt]) -> dict[str, Grade]:
        """By key."""
        keys = tuple(attempt.key for attempt in group)
        if keys in self._places:
            found = record_at(self._grades.path, self._places[keys], GradeGroup)
        else:
            found = GradeGroup(keys=keys, grades=self._graded(group))
            self._places[keys] = self._grades.append([found])
            self._read_tokens += found.read_tokens
        return dict(zip(found.keys, found.grades, strict=True))

    def _graded(self, group: Sequence[Attempt]) -> tuple[Grade, ...]:
        requests = with_openings([self._request(attempt) for attempt in group], self._openings)
        if self._cannot is not None:
            raise self._cannot
        try:
            grades = tuple(self.engine.grade(requests, self._options.top_tokens))
        except CannotDo as error:
            if not self._read_tokens:  # it never could
                self._cannot = error
            raise
        self._held = tuple(attempt.key for attempt in group)
        return grades

    def continuations(
        self, requests: Sequence[Request], group: Sequence[Attempt] = ()
    ) -> dict[str, Completion]:
        """By key; each is kept as it comes.

        `group`: what was graded last, these among it. llama.cpp goes on from what it read then;
        of a killed practice it reads that again, in the same company, and so says the same.
        """
        missing = {r.key for r in requests} - self._said.keys()
        if missing:
            if group and self._teacher.engine == "llama.cpp":
                if self._held != tuple(attempt.key for attempt in group):
                    self._graded(group)
                self._held = ()
            asked = with_openings(requests, self._openings)
            batches = batches_of(self.engine, asked, missing)
            for key, answer in chain.from_iterable(map(self.engine.generate, batches)):
                if key in missing:
                    self._said.add(key, answer)
        return {request.key: self._said[request.key] for request in requests}

    def _request(self, attempt: Attempt) -> Request:
        text, _ = text_for_teacher(attempt.completion.text, self._teacher)
        options = self._options
        to_mistake = options.learn_from == "wrong" or options.method == "recover"
        return Request(
            key=attempt.key,
            messages=self.messages_of(attempt),
            begun=text,
            stop_below=options.mistake_below if to_mistake else None,
        )

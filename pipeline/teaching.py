"""From attempts to lessons: graded, aligned, and put into the words of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from pipeline.attempts import Attempt
from pipeline.grading import Grading
from pipeline.lesson import Lesson, batch_of, told
from pipeline.methods import METHODS, aligned, recover
from pipeline.methods.graded import (
    Graded,
    Tongues,
    align,
    ends_by_itself,
    text_for_teacher,
)
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import TeacherOptions
from pipeline.run import Context
from pipeline.sampler import Sampler
from pipeline.shared_vocabulary import shared_vocabulary
from pipeline.tasks.judge import Judge
from pipeline.update import token_logprobs
from serve.errors import CannotDo, DataError
from serve.messages import Completion, Grade

# So many texts that both sides spell differently are no chance.
TELLING = 8
Timed = Callable[..., AbstractContextManager[None]]


class Teaching:
    """One pair at work; `timed(phase)` is told what the time goes into.

    `unspelt`: of the newest lessons' attempts, those whose text a side's tokens do not spell.
    """

    def __init__(
        self,
        sampler: Sampler,
        grading: Grading,
        judge: Judge,
        teacher: TeacherOptions,
        context: Context,
        timed: Timed,
    ) -> None:
        self._sampler, self._grading, self._judge = sampler, grading, judge
        self._teacher, self._seed, self._timed = teacher, context.seed, timed
        self._log = context.log
        self._tongues: Tongues | None = None
        self.unspelt = 0

    def lessons(self, attempts: Sequence[Attempt], options: OnPolicyOptions) -> list[Lesson]:
        """What one block's attempts teach. Unjudged and empty ones teach nothing.

        Raises DataError when no text of a graded method is spelt by both tokenizers.
        """
        judged = [a for a in attempts if a.completion.ids and a.verdict.passed is not None]
        if options.method != "recover" and options.learn_from == "all":
            return self._taught(judged, options)
        made = self._taught([a for a in judged if not a.verdict.passed], options)
        if options.right_as_examples:
            right = [a for a in judged if a.verdict.passed and ends_by_itself(a.completion)]
            made += [self._as_it_stands(a) for a in right]
        return made

    def _as_it_stands(self, attempt: Attempt) -> Lesson:
        """What the student wrote, and that it ended there."""
        prompt = self._sampler.prompt_ids(attempt.problem.question)
        ids = (*prompt, *attempt.completion.ids, self._sampler.end)
        return told(ids, len(prompt), attempt.key)

    def _taught(self, attempts: Sequence[Attempt], options: OnPolicyOptions) -> list[Lesson]:
        """What the teacher has to say of attempts."""
        if options.method == "recover":
            return self._recovered(self._prefixes(attempts, options), options)
        graded = self._graded(attempts, options)
        if len(graded) >= TELLING and not any(g.spelt for g in graded):
            raise DataError(
                f"no text of {len(graded)} attempts is spelt byte for byte by the tokens of both "
                "models",
                hint='on_policy.method = "recover" needs no common bytes',
            )
        with self._timed("lessons"):
            method = METHODS[options.method]
            own_nats = self._own_nats(graded, options)
            made = list(method.lessons(graded, options, self._known_tongues(options), own_nats))
        if options.continuations:
            failed = [g for g in graded if not g.attempt.verdict.passed]
            made += self._recovered(self._prefixes_of(failed, options), options)
        return made

    def _graded(self, attempts: Sequence[Attempt], options: OnPolicyOptions) -> list[Graded]:
        """In the order of their keys. Where the teacher is to go on, it does from what it read."""
        graded = []
        for group in self._grading.groups(attempts):
            with self._timed("grading", one_heap=True):
                grades = self._grading.grades(group)
            found = [self._aligned(attempt, grades[attempt.key], options) for attempt in group]
            if self._goes_on_at_once(options):
                failed = [g for g in found if not g.attempt.verdict.passed]
                prefixes = self._prefixes_of(failed, options)
                if options.method == "recover":
                    prefixes += self._middles([g.attempt for g in found if not g.spelt])
                self._ask(prefixes, options, group)
            graded += found
        graded.sort(key=lambda g: g.attempt.key)
        unspelt = sum(not g.spelt for g in graded)
        if unspelt:
            self._log.warning("%d of %d attempts cannot be aligned", unspelt, len(graded))
        self.unspelt = unspelt
        return graded

    def _goes_on_at_once(self, options: OnPolicyOptions) -> bool:
        """llama.cpp still holds what it read; others answer more of a block at a time later."""
        asked = options.continuations or options.method == "recover"
        return asked and self._teacher.engine == "llama.cpp"

    def _aligned(self, attempt: Attempt, grade: Grade, options: OnPolicyOptions) -> Graded:
        _, runs = text_for_teacher(attempt.completion.text, self._teacher)
        prompt = self._sampler.prompt_ids(attempt.problem.question)
        return align(attempt, prompt, grade, runs, self._known_tongues(options))

    def _own_nats(
        self, graded: Sequence[Graded], options: OnPolicyOptions
    ) -> dict[str, list[float]]:
        """The student's log probability of each graded token, and of the end if all of them are.

        Of the attempts alone that need them: method span's, those with tokens inside longer spans.
        """
        if options.method == "aligned":
            graded = [g for g in graded if aligned.needs_own_nats(g, options)]
        found = {}
        for start in range(0, len(graded), options.batch_lessons):
            part = graded[start : start + options.batch_lessons]
            told_whole = [self._as_graded(g) for g in part]
            batch = batch_of(told_whole, self._sampler.pad)
            nats = token_logprobs(self._sampler.model, batch).tolist()
            for one, whole in zip(part, told_whole, strict=True):
                found[one.attempt.key], nats = nats[: whole.places], nats[whole.places :]
        return found

    def _as_graded(self, graded: Graded) -> Lesson:
        end = () if graded.grade.stopped_at is not None else (self._sampler.end,)
        answer = (*graded.answer[: graded.graded_tokens], *end)
        return told((*graded.prompt, *answer), len(graded.prompt))

    def _prefixes(
        self, attempts: Sequence[Attempt], options: OnPolicyOptions
    ) -> list[recover.Prefix]:
        """Up to the first mistake; to the middle where the teacher cannot grade."""
        try:
            graded = self._graded(attempts, options)
        except CannotDo:
            return self._middles(attempts)
        unspelt = [g.attempt for g in graded if not g.spelt]
        return [*self._prefixes_of(graded, options), *self._middles(unspelt)]

    def _middles(self, attempts: Sequence[Attempt]) -> list[recover.Prefix]:
        found = (
            recover.middle_prefix(a, self._sampler.prompt_ids(a.problem.question), self._text(a))
            for a in attempts
        )
        made = [prefix for prefix in found if prefix is not None]
        if len(made) < len(attempts):
            missing = len(attempts) - len(made)
            self._log.warning("%d of %d attempts have no middle", missing, len(attempts))
        return made

    def _prefixes_of(
        self, graded: Sequence[Graded], options: OnPolicyOptions
    ) -> list[recover.Prefix]:
        found = (recover.prefix_of(g, self._text(g.attempt), options) for g in graded)
        return [prefix for prefix in found if prefix is not None]

    def _text(self, attempt: Attempt) -> str:
        return text_for_teacher(attempt.completion.text, self._teacher)[0]

    def _recovered(
        self, prefixes: Sequence[recover.Prefix], options: OnPolicyOptions
    ) -> list[Lesson]:
        said = self._ask(prefixes, options)
        tongues = self._known_tongues(options)
        made = [
            recover.recovered(
                prefix, said[prefix.attempt.key], self._judge, self._sampler.tokenizer, tongues
            )
            for prefix in prefixes
        ]
        return [lesson for lesson in made if lesson is not None]

    def _ask(
        self,
        prefixes: Sequence[recover.Prefix],
        options: OnPolicyOptions,
        group: Sequence[Attempt] = (),
    ) -> dict[str, Completion]:
        """How the teacher goes on from prefixes, of attempts in the group that was graded last."""
        requests = recover.requests_of(
            prefixes, self._grading.messages_of, options, options.max_tokens, self._seed
        )
        with self._timed("continuations", one_heap=True):
            return self._grading.continuations(requests, group)

    def _known_tongues(self, options: OnPolicyOptions) -> Tongues:
        if self._tongues is None:
            pieces, vocabulary = self._sampler.engine.vocabulary(), None
            if options.method == "aligned":
                teacher = self._grading.engine
                vocabulary = shared_vocabulary(
                    pieces,
                    teacher.vocabulary(),
                    self._sampler.end,
                    teacher.end_ids(),
                    self._sampler.encode,
                )
            self._tongues = Tongues(pieces, self._sampler.end, vocabulary)
        return self._tongues

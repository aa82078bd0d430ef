"""The student's own attempts at problems it is not examined on, judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.on_policy_options import OnPolicyOptions
from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions
from pipeline.records import Example, Problem, Verdict, content_key
from pipeline.tasks.judge import Judge
from serve.engines.base import Engine
from serve.messages import Completion, Record, Request, Sampling

STAGE = "05-on-policy"


class Attempt(Record):
    """One attempt in one block, with all it takes to read it alone."""

    key: str
    block: int
    problem: Problem
    completion: Completion
    verdict: Verdict


def own_answers(attempts: Iterable[Attempt], student: StudentOptions) -> list[Example]:
    """Attempts that ended, as the student wrote them, sorted by key."""
    ended = [a for a in attempts if a.completion.finish == "stop"]
    return [
        Example(
            key=attempt.key,
            family=attempt.problem.family,
            prompt=tuple(
                m.model_dump() for m in student_messages(student, attempt.problem.question)
            ),
            completion=attempt.completion.text,
        )
        for attempt in sorted(ended, key=lambda a: a.key)
    ]


def seed_of(seed: int, *parts: object) -> int:
    """A seed that no other draw of the stage has."""
    return int(content_key(seed, STAGE, *map(str, parts))[:15], 16)


def in_practice_order(problems: Sequence[Problem], seed: int) -> list[Problem]:
    """Shuffled once for the whole stage, the same in every process."""
    return sorted(problems, key=lambda p: content_key(seed, STAGE, p.key))


def problems_of_block(
    ordered: Sequence[Problem], options: OnPolicyOptions, block: int
) -> list[Problem]:
    """As many as the block's attempts ask for; the list begins again when it is through."""
    count = max(1, options.block_attempts // options.samples)
    return [ordered[(block * count + i) % len(ordered)] for i in range(count)]


def sample_attempts(
    engine: Engine,
    judge: Judge,
    problems: Sequence[Problem],
    student: StudentOptions,
    options: OnPolicyOptions,
    seed: int,
    block: int,
) -> list[Attempt]:
    """`options.samples` attempts a problem, in the order of their keys."""
    asked: dict[str, Problem] = {}
    requests = []
    for place, problem in enumerate(problems):
        for sample in range(options.samples):
            key = content_key(block, place, problem.key, sample)
            sampling = Sampling(
                temperature=options.temperature,
                max_tokens=options.max_tokens,
                seed=seed_of(seed, "attempt", key),
            )
            asked[key] = problem
            messages = student_messages(student, problem.question)
            requests.append(Request(key=key, messages=messages, sampling=sampling))
    attempts = []
    for key, answer in engine.generate(requests):
        completion = answer.model_copy(update={"timing": None})
        attempts.append(
            Attempt(
                key=key,
                block=block,
                problem=asked[key],
                completion=completion,
                verdict=judge.verdict(asked[key], completion),
            )
        )
    return sorted(attempts, key=lambda a: a.key)

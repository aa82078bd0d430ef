"""Problems from reasoning-gym families: generated from seeds, judged by the family's own scorer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from pipeline.records import Problem
from serve.errors import RecipeError

VERSION_PACKAGES = ("reasoning-gym",)


def family_problems(
    family: str, options: dict[str, Any], seed: int, size: int
) -> Iterator[Problem]:
    """`size` problems of `family` from `seed`; the same arguments give the same problems.

    Raises RecipeError for an unknown family or an option the family refuses.
    """
    if family not in DATASETS:
        raise RecipeError(f"unknown reasoning-gym family {family!r}", hint=_closest(family))
    try:
        dataset = reasoning_gym.create_dataset(family, size=size, seed=seed, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise RecipeError(f"family {family} refuses options {options}: {error}") from error
    for entry in dataset:
        answer = entry["answer"]
        yield Problem(
            question=entry["question"].strip(),
            answer=answer if isinstance(answer, str) else str(answer),
            family=family,
            scorer=f"gym:{family}",
            entry={"answer": answer, "metadata": _plain(entry["metadata"])}
            | ({"options": options} if options else {}),
        )


def score(problem: Problem, answer: str) -> bool:
    """Full marks from the family's own scorer; partial credit is a fail."""
    family = problem.scorer.removeprefix("gym:")
    entry = {"question": problem.question, **problem.entry}
    options = json.dumps(entry.pop("options", {}), sort_keys=True)
    return bool(_dataset(family, options).score_answer(answer, entry) >= 1.0 - 1e-9)


@cache
def _dataset(family: str, options: str) -> Any:
    """Made as the problems were: some scorers ask their options how exact an answer has to be."""
    return reasoning_gym.create_dataset(family, size=1, **json.loads(options))


def _plain(value: Any) -> Any:
    """Metadata as JSON holds it, so that a problem read back equals the one written."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _closest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(DATASETS), n=3)
    return f"did you mean {' or '.join(near)}?" if near else "see reasoning_gym's gallery"

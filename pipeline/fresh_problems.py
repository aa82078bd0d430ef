"""Fresh problems of a run's families, and their verdicts: a process that a chat asks.

    python -m pipeline.fresh_problems RUN

Reads the run's `recipe.json` and its problems. JSON lines in: `{"seed"}` for a problem that nobody
was trained on, `{"problem", "text"}` for a verdict on a whole answer. JSON lines out, one
each: `{"problem"}`, `{"passed", "extracted"}`, or `{"error"}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from pipeline.recipe import ProblemsOptions, Recipe
from pipeline.records import Problem, content_key
from pipeline.store import read_records
from pipeline.tasks.files import jsonl_problems
from pipeline.tasks.judge import Judge
from serve.errors import DataError, RetortError
from serve.messages import Completion

DRAWN = 64


def fresh_problem(options: ProblemsOptions, seen: set[str], learnt: set[str], seed: int) -> Problem:
    """A problem of one of the families that is not in `seen`. Raises DataError when there is none.

    Runs without families give a problem of their files, which are dealt out whole: one that is not
    among those that were `learnt` from, though it may have been examined with.
    """
    draw = Random(content_key("chat", seed))  # noqa: S311
    if options.families:
        from pipeline.tasks.gym import family_problems

        family = draw.choice(options.families)
        drawn = family_problems(family.name, family.options, draw.randrange(2**31), DRAWN)
        found = next((p for p in drawn if p.question not in seen), None)
        if found is None:
            raise DataError(f"{DRAWN} problems of {family.name} were all in the run already")
        return found
    problems = [p for file in options.files for p in jsonl_problems(Path(file))]
    if not problems:
        raise DataError("the run's recipe names no family and no file of problems")
    left = [p for p in problems if p.question not in learnt]
    if not left:
        raise DataError("all problems of the run's files were trained on")
    return draw.choice(left)


def main(run: Path) -> None:
    recipe = Recipe.model_validate_json((run / "recipe.json").read_text(encoding="utf-8"))
    known = (
        {p.question for p in _problems(run, "*")},
        {p.question for side in ("train", "practice") for p in _problems(run, side)},
    )
    with Judge() as judge:
        for line in sys.stdin:
            print(json.dumps(_reply(json.loads(line), recipe, known, judge)), flush=True)


def _reply(
    asked: dict[str, Any], recipe: Recipe, known: tuple[set[str], set[str]], judge: Judge
) -> dict[str, Any]:
    try:
        if "seed" in asked:
            problem = fresh_problem(recipe.problems, *known, asked["seed"])
            return {"problem": problem.model_dump()}
        problem = Problem.model_validate(asked["problem"])
        said = Completion(
            text=asked["text"], finish=asked["finish"], prompt_tokens=0, completion_tokens=0
        )
        verdict = judge.verdict(problem, said)
        return {"passed": verdict.passed, "extracted": verdict.extracted}
    except RetortError as error:
        return {"error": str(error.args[0])}


def _problems(run: Path, side: str) -> Iterator[Problem]:
    for path in sorted((run / "01-problems").glob(f"{side}.jsonl")):
        yield from read_records(path, Problem)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

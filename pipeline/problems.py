"""Stage 01: problems to train on and problems to be examined on, which never meet.

Writes `train.jsonl` and `eval.jsonl`, sorted by key. Train and evaluation items of a family come
from
different seeds, and no evaluation question equals a training one. Every family proves itself first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.recipe import FamilyOptions, ProblemsOptions
from pipeline.records import Problem, content_key
from pipeline.run import Context
from pipeline.store import write_records
from pipeline.tasks.files import dataset_problems, jsonl_problems
from pipeline.tasks.judge import Judge
from serve.errors import DataError

STAGE_VERSION = 1
LIBRARIES = ("reasoning-gym", "math-verify", "datasets")
# A small family repeats itself: look at this many times the wanted size before giving up.
OVERDRAW = 8
PROOF_ITEMS = 8


def run(
    config: ProblemsOptions, inputs: Mapping[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Write both files and return counts per family. Raises DataError or RecipeError."""
    train: dict[str, Problem] = {}
    evaluation: dict[str, Problem] = {}
    for source, draw in _sources(config, context.seed):
        _split(source, draw, config, train, evaluation)
    if not train or not evaluation:
        raise DataError(f"{len(train)} training and {len(evaluation)} evaluation problems")
    _prove(list(train.values()) + list(evaluation.values()))
    for name, part in (("train", train), ("eval", evaluation)):
        write_records(out / f"{name}.jsonl", sorted(part.values(), key=lambda p: p.key))
    return {
        "train": dict(sorted(Counter(p.family for p in train.values()).items())),
        "evaluation": dict(sorted(Counter(p.family for p in evaluation.values()).items())),
    }


Draw = Callable[[str], Iterable[Problem]]


def _sources(config: ProblemsOptions, seed: int) -> Iterator[tuple[str, Draw]]:
    """(name, draw) of every source; `draw("train" | "eval")` gives candidates for that side."""
    for family in config.families:
        yield family.name, _family_draw(family, config, seed)
    for file in config.files:
        yield file, _halves(list(jsonl_problems(Path(file))), config)
    for d in config.datasets:
        rows = dataset_problems(d.name, d.config, d.split, d.question, d.answer, d.revision)
        yield d.name, _halves(list(rows), config)


def _family_draw(family: FamilyOptions, config: ProblemsOptions, seed: int) -> Draw:
    def draw(side: str) -> Iterable[Problem]:
        from pipeline.tasks.gym import family_problems

        wanted = config.train_per_family if side == "train" else config.eval_per_family
        side_seed = int(content_key(seed, side, family.name)[:8], 16) >> 1
        return family_problems(family.name, family.options, side_seed, wanted * OVERDRAW)

    return draw


def _halves(problems: list[Problem], config: ProblemsOptions) -> Draw:
    """A fixed collection, cut by key: the lowest keys are the evaluation side."""
    ordered = sorted(problems, key=lambda p: p.key)
    cut = min(config.eval_per_family, len(ordered) // 4)

    def draw(side: str) -> Iterable[Problem]:
        return ordered[cut:] if side == "train" else ordered[:cut]

    return draw


def _split(
    source: str,
    draw: Draw,
    config: ProblemsOptions,
    train: dict[str, Problem],
    evaluation: dict[str, Problem],
) -> None:
    """Fill both sides from one source. A question already on either side is not taken again."""
    taken = {p.question for p in [*train.values(), *evaluation.values()]}
    for side, target, wanted in (
        ("eval", evaluation, config.eval_per_family),
        ("train", train, config.train_per_family),
    ):
        fresh = _unseen(draw(side), taken)
        chosen = list(islice(fresh, wanted))
        if not chosen:
            raise DataError(f"{source} gave no unseen {side} problem", hint="widen its options")
        target.update((p.key, p) for p in chosen)


def _unseen(problems: Iterable[Problem], taken: set[str]) -> Iterator[Problem]:
    for problem in problems:
        if problem.question not in taken:
            taken.add(problem.question)
            yield problem


def _prove(problems: list[Problem]) -> None:
    """Each family's reference answers pass its verifier; empty ones and another's answer fail."""
    by_family: dict[str, list[Problem]] = {}
    for problem in sorted(problems, key=lambda p: p.key):
        by_family.setdefault(problem.family, []).append(problem)
    with Judge(time_limit_s=10.0) as judge:
        for family, members in by_family.items():
            for problem in members[:PROOF_ITEMS]:
                other = next((p.answer for p in members if p.answer != problem.answer), None)
                _prove_one(judge, family, problem, other)


def _prove_one(judge: Judge, family: str, problem: Problem, other: str | None) -> None:
    if judge.judge(problem, problem.answer).passed is not True:
        raise DataError(
            f"family {family}: its verifier refuses its own answer {problem.answer!r} "
            f"to {problem.question!r}"
        )
    for wrong in ("", other):
        if wrong is not None and judge.judge(problem, wrong).passed is not False:
            raise DataError(
                f"family {family}: its verifier accepts {wrong!r} for {problem.answer!r} "
                f"to {problem.question!r}"
            )

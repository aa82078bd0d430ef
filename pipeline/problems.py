"""Stage 01: problems to train on and problems to be examined on, which never meet.

Writes `train.jsonl`, `practice.jsonl` (for on-policy refinement), `eval.jsonl` and `gate.jsonl`
(more to be examined on, for what `eval.jsonl` leaves undecided), sorted by key. The sides of a
family come from different seeds, and no question stands on two of them. Every family proves itself
first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pipeline.recipe import FamilyOptions, ProblemsOptions
from pipeline.records import Problem, content_key
from pipeline.run import Context
from pipeline.store import write_records
from pipeline.tasks.files import dataset_problems, jsonl_problems
from pipeline.tasks.judge import Judge
from serve.errors import DataError
from serve.messages import Completion

STAGE_VERSION = 4
LIBRARIES = ("reasoning-gym", "math-verify", "datasets")
# A small family repeats itself: look at this many times the wanted size before giving up.
OVERDRAW = 8
PROOF_ITEMS = 8


def run(
    config: ProblemsOptions, inputs: Mapping[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Write both files and return counts per family. Raises DataError or RecipeError."""
    sides: dict[Side, dict[str, Problem]] = {"eval": {}, "gate": {}, "train": {}, "practice": {}}
    wanted: dict[Side, int] = {
        "eval": config.eval_per_family,
        "gate": config.gate_per_family,
        "train": config.train_per_family,
        "practice": config.practice_per_family,
    }
    for source, draw in _sources(config, context.seed):
        _split(source, draw, wanted, sides)
    if not sides["train"] or not sides["eval"]:
        raise DataError(
            f"{len(sides['train'])} training and {len(sides['eval'])} evaluation problems"
        )
    _prove([problem for part in sides.values() for problem in part.values()])
    for name in WRITTEN:
        problems = sorted(sides[name].values(), key=lambda p: p.key)
        write_records(out / f"{name}.jsonl", problems)
    return {
        NAMES[name]: dict(sorted(Counter(p.family for p in part.values()).items()))
        for name, part in sides.items()
    }


Side = Literal["eval", "gate", "train", "practice"]
NAMES = {"eval": "evaluation", "gate": "gate", "train": "train", "practice": "practice"}
WRITTEN: tuple[Side, ...] = ("train", "practice", "eval", "gate")
Draw = Callable[[Side], Iterable[Problem]]


def _sources(config: ProblemsOptions, seed: int) -> Iterator[tuple[str, Draw]]:
    """(name, draw) of every source; `draw(side)` gives candidates for that side."""
    for family in config.families:
        yield family.name, _family_draw(family, config, seed)
    for file in config.files:
        yield file, _halves(list(jsonl_problems(Path(file))), config)
    for d in config.datasets:
        rows = dataset_problems(**dict(d))
        yield d.name, _halves(list(rows), config)


def _family_draw(family: FamilyOptions, config: ProblemsOptions, seed: int) -> Draw:
    def draw(side: Side) -> Iterable[Problem]:
        from pipeline.tasks.gym import family_problems

        wanted = getattr(config, f"{side}_per_family")
        side_seed = int(content_key(seed, side, family.name)[:8], 16) >> 1
        return family_problems(family.name, family.options, side_seed, wanted * OVERDRAW)

    return draw


def _halves(problems: list[Problem], config: ProblemsOptions) -> Draw:
    """A fixed collection, cut by key: evaluation, gate, practice, and the rest for training."""
    ordered = sorted(problems, key=lambda p: p.key)
    first = min(config.eval_per_family, len(ordered) // 4)
    second = first + min(config.gate_per_family, len(ordered) // 4)
    third = second + min(config.practice_per_family, len(ordered) // 4)
    parts: dict[Side, list[Problem]] = {
        "eval": ordered[:first],
        "gate": ordered[first:second],
        "practice": ordered[second:third],
        "train": ordered[third:],
    }
    return parts.__getitem__


def _split(
    source: str, draw: Draw, wanted: Mapping[Side, int], sides: Mapping[Side, dict[str, Problem]]
) -> None:
    """Fill all sides from one source. A question already on any side is not taken again."""
    taken = {p.question for part in sides.values() for p in part.values()}
    for side, target in sides.items():
        chosen = list(islice(_unseen(draw(side), taken), wanted[side]))
        if not chosen and side != "gate" and wanted[side]:
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
    said = Completion(
        text=f"Answer: {problem.answer}", finish="stop", prompt_tokens=0, completion_tokens=0
    )
    if judge.verdict(problem, said).passed is not True:
        raise DataError(
            f"family {family}: its own answer {problem.answer!r} to {problem.question!r} is not "
            "found right after 'Answer:'",
            hint="an answer is read from one line" if "\n" in problem.answer.strip() else None,
        )
    for wrong in ("", other):
        if wrong is not None and judge.judge(problem, wrong).passed is not False:
            raise DataError(
                f"family {family}: its verifier accepts {wrong!r} for {problem.answer!r} "
                f"to {problem.question!r}"
            )

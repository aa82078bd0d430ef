"""Was practice worth its cost? As much spent on more traces and SFT, asked the same items.

    python -m pipeline.compare on-policy sft --equal-compute [operations] --run FOLDER
    python -m pipeline.compare recipes [--run FOLDER]      (pipeline/compare_recipes.py)

The first reads a finished run with practice; makes `FOLDER/compare/more-sft` (traces that are there
already are not asked again), trains a student on the larger set, evaluates it beside the practised
one, and writes `FOLDER/compare.json`, which the report then shows.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from pipeline import report
from pipeline.all import check_finished, execute
from pipeline.cells import hand_on
from pipeline.compare_recipes import add_arguments, compare_recipes
from pipeline.examine import ON_POLICY, ON_POLICY_STAGE, SFT_STAGE, checkpoint_rung, examine
from pipeline.imported import share_imported
from pipeline.ladder import Judged, against, greedy
from pipeline.ledger import (
    ASKING,
    COMPARED,
    greedy_by_rung,
    manifest_of,
    practice,
    supervision,
)
from pipeline.memory import keep_freed_memory, start_again_on_huge_pages
from pipeline.methods_table import sentences, table
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.quiet import quieten
from pipeline.recipe import Recipe
from pipeline.recipe_files import recorded_recipe
from pipeline.records import Problem
from pipeline.report_again import show_again
from pipeline.run import SCRATCH, Context, RunDir
from pipeline.store import read_records, write_json
from pipeline.tasks.judge import Judge
from pipeline.transfer_suites import asked_suites
from serve.errors import DataError, Interrupted, RetortError

RIVAL = "compare/more-sft"
GENERAL_STAGE = "02-general"
# What may be equal, and its name in the ledger.
MEASURES = {"seconds": "took_s", "operations": "operations"}


def larger_recipe(recipe: Recipe, root: Path, measure: str) -> tuple[Recipe, float, int]:
    """The recipe without practice and with more problems, what they may cost, and how many
    problems there were.

    A problem's price is what traces and SFT cost in this run, divided by their problems.
    `measure`: a cost in the ledger. Raises DataError where it is not known.
    """
    folders = _folders(root)
    budget = practice(recipe, folders)[measure]
    if budget is None:
        raise DataError(
            f"{root}: its teacher does not say its size, so operations are not known",
            hint="--equal-compute seconds",
        )
    problems = sum(1 for _ in read_records(root / "01-problems" / "train.jsonl", Problem))
    asked = recipe.problems
    sources = len(asked.families) + len(asked.files) + len(asked.datasets)
    # General prompts are asked once, however many problems there are.
    scaling = {name: folder for name, folder in folders.items() if name != GENERAL_STAGE}
    price = supervision(recipe, scaling)[measure] / problems
    more = math.ceil(budget / price / sources)
    changed = recipe.problems.model_copy(
        update={"train_per_family": recipe.problems.train_per_family + more}
    )
    larger = recipe.model_copy(update={"problems": changed, "on_policy": OnPolicyOptions()})
    return larger, float(budget), problems


def compare(root: Path, measure: str, progress: Progress) -> dict[str, Any]:
    """Train the rival, ask it the run's evaluation items, write and return the comparison.

    `measure`: "took_s" or "operations", what both may cost alike.
    """
    recipe = recorded_recipe(root)
    if recipe.on_policy.method == "none":
        raise DataError(f"{root} has no practice", hint="set on_policy.method in its recipe")
    check_finished(RunDir(root), recipe)
    larger, budget, before = larger_recipe(recipe, root, measure)
    rival = RunDir(root / RIVAL)
    with rival.locked(), rival.logged():
        for name in ASKING:
            answers = Path(name, SCRATCH, "answers.jsonl")
            hand_on(root / answers, rival.root / answers)
        share_imported(root, rival.root)
        execute(rival, larger, progress, until=SFT_STAGE)
        train = read_records(rival.root / "01-problems" / "train.jsonl", Problem)
        more = sum(1 for _ in train) - before
        if more <= 0:
            raise DataError(f"{root}: its sources have no further problems to train on")
        context = Context.of(recipe, progress)
        judged = _asked(rival.root, root, recipe, context)
    found = _verdict(judged, root) | {
        "measure": measure,
        "budget": budget,
        "more_problems": more,
        "spent": spent(recipe, rival.root, root, measure),
        "fingerprint": manifest_of(root / ON_POLICY_STAGE)["fingerprint"],
    }
    write_json(root / COMPARED, found)
    return found


def _folders(root: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in root.glob("*/manifest.json")}


def spent(recipe: Recipe, rival: Path, root: Path, measure: str) -> float:
    """What the additions cost: new traces, and the longer training.

    Traces of the run cost the rival no seconds, but count among its tokens again.
    """
    first, second = _folders(root), _folders(rival)
    if measure == "took_s":
        first = {name: folder for name, folder in first.items() if name not in ASKING}
    return float(supervision(recipe, second)[measure] - supervision(recipe, first)[measure])


def _asked(rival: Path, root: Path, recipe: Recipe, context: Context) -> list[Judged]:
    problems = list(read_records(root / "01-problems" / "eval.jsonl", Problem))
    options = recipe.evaluate.greedy
    keep_freed_memory(one_heap=True)
    rung = checkpoint_rung(rival / SFT_STAGE, recipe.asked_student, options)
    with Judge() as judge:
        return examine(rung, problems, options, rival / "evaluated", judge, context)


def _verdict(judged: list[Judged], root: Path) -> dict[str, Any]:
    """The practised student against the rival, paired."""
    practised = greedy_by_rung(root / "08-evaluate")[ON_POLICY]
    rival = greedy(judged)
    both = practised.keys() & rival.keys()
    difference = against(rival, practised)
    if difference is None:
        raise DataError(f"{root}: no evaluation item was judged for both students")
    return {
        "items": len(both),
        "more_sft": sum(rival[i] for i in both) / len(both),
        "on_policy": sum(practised[i] for i in both) / len(both),
        **difference,
    }


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    quieten()
    progress = Progress()
    try:
        if options.what == "recipes":
            wanted = (options.recipes, options.set, options.items, asked_suites(options))
            methods = compare_recipes(options.run, *wanted, progress)
            print(f"{table(methods)}\n{sentences(methods)}\ntable: {options.run / 'recipes.md'}")
            return 0
        found = compare(options.run, MEASURES[options.equal_compute], progress)
        with RunDir(options.run).locked():
            show_again(options.run, progress)
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return Interrupted.exit_code
    low, high = found["interval"]
    print(
        f"on-policy {100 * found['on_policy']:.1f} %, {found['more_problems']} more problems for "
        f"SFT {100 * found['more_sft']:.1f} % of {found['items']} items: difference "
        f"{100 * found['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], "
        f"p {found['p_value']:.3g}\nreport: {options.run / report.FILES[0]}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.compare",
        description="Two ways to spend the same compute, or the published methods side by side.",
    )
    kinds = parser.add_subparsers(dest="what", required=True)
    rivals = kinds.add_parser("on-policy", help="practice of a finished run, or more traces?")
    rivals.add_argument("rival", choices=["sft"])
    rivals.add_argument(
        "--equal-compute",
        nargs="?",
        const="seconds",
        choices=list(MEASURES),
        required=True,
        help="seconds as the run took them (default), or operations counted from the models' "
        "shapes, which other work on the machine does not change",
    )
    rivals.add_argument("--run", type=Path, default=Path("runs/default"))
    add_arguments(kinds.add_parser("recipes", help="one student a published method"))
    return parser


if __name__ == "__main__":
    start_again_on_huge_pages()
    sys.exit(main())

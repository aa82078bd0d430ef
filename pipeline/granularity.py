"""Which supervision does a student need? One student a view, all on the same items.

    python -m pipeline.granularity [RECIPE] [--run FOLDER] [--traces 20 40] [--views full answer …]

Each size of supervision is tried twice: with the same traces for every view, and with the same
number of supervised tokens (more traces, then more epochs, for views that take less of each; all
take them in the same order) in the nearest number of updates that whole batches allow (of more
examples, where they are short). General data of the recipe are left out: no view is made of them.
Reads and, where they are missing, makes the problems and traces of the run; writes
`FOLDER/granularity/`: a folder a student, `granularity.json`, `granularity.md` and a plot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.all import execute
from pipeline.cells import Trained, trained
from pipeline.examine import base_rung, examine
from pipeline.granularity_table import Taught, Untaught, as_json, plot, sentences, table
from pipeline.ladder import greedy
from pipeline.memory import keep_freed_memory, start_again_on_huge_pages
from pipeline.progress import Progress
from pipeline.quiet import quieten
from pipeline.recipe import GeneralOptions, Recipe, SuperviseOptions
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Problem, Trace
from pipeline.run import SCRATCH, Context, RunDir
from pipeline.store import read_records, write_file, write_json
from pipeline.tasks.judge import Judge
from pipeline.transfer import ask_rung
from pipeline.transfer_questions import Questions
from pipeline.transfer_suites import Suites, add_suites, asked_suites
from pipeline.transfer_summary import right_by_suite
from pipeline.views import CONTROL, VIEWS
from serve.errors import DataError, Interrupted, RetortError

FOLDER = "granularity"
REFERENCE = "full"
# Views that cut lines need at most so many times the traces for the same number of tokens, and
# measuring a trace costs more than training on it.
STEPS_TRACES = 3


def study(
    run: RunDir,
    recipe: Recipe,
    sizes: Sequence[int],
    views: Sequence[str],
    items: int,
    suites: tuple[Suites, Path],
    progress: Progress,
) -> list[Taught]:
    """Teach and examine a student for every view, size and arm."""
    with run.locked(), run.logged():
        execute(run, recipe, progress, until="03-curated")
    problems = list(read_records(run.root / "01-problems" / "eval.jsonl", Problem))[:items]
    kept = sum(1 for _ in read_records(run.root / "03-curated" / "kept.jsonl", Trace))
    if max(sizes) > kept:
        raise DataError(f"{max(sizes)} traces a student wanted, {kept} kept in {run.root}")
    found = []
    asked = (problems, suites)
    recipe = recipe.model_copy(update={"general": GeneralOptions()})
    for size in sizes:
        reference = _teach(run, recipe, REFERENCE, size, asked, progress)
        for view in views:
            for arm in ("traces", "tokens"):
                like = reference if arm == "tokens" and view != REFERENCE else None
                progress.say(f"{size} traces, {arm}: {view}")
                try:
                    student = _teach(run, recipe, view, size, asked, progress, like)
                except DataError as error:
                    found.append(Taught(view, arm, size, None, str(error).replace("\n", "; ")))
                    continue
                found.append(Taught(view, arm, size, student, ""))
    return found


def _teach(
    run: RunDir,
    recipe: Recipe,
    view: str,
    size: int,
    asked: tuple[Sequence[Problem], tuple[Suites, Path]],
    progress: Progress,
    like: Trained | None = None,
) -> Trained:
    options = recipe.supervise.model_copy(update={"view": view, "traces": size})
    if like is not None:
        traces = STEPS_TRACES * size if view == "steps" else None
        update = {"traces": traces, "tokens": like.supervised_tokens // recipe.sft.epochs}
        options = options.model_copy(update=update)
    changed = recipe.model_copy(update={"supervise": options})
    # What is the same in both arms is one student.
    name = f"{size}-{'traces' if like is None else 'tokens'}-{view}"
    return trained(run, run.root / FOLDER / name, changed, *asked, progress, like)


def untaught(
    run: RunDir,
    recipe: Recipe,
    problems: Sequence[Problem],
    suites: tuple[Suites, Path],
    progress: Progress,
) -> Untaught:
    """What the base student gets right in the prompt that suits it best.

    Students of some views are asked with the brief one; to be better, they must not owe it to that.
    """
    options = recipe.evaluate.greedy
    keep_freed_memory(one_heap=True)
    found = []
    with Judge() as judge:
        context = Context.of(recipe, progress)
        for name, view in {"base": "full", "base-brief": "answer"}.items():
            asked = recipe.model_copy(update={"supervise": SuperviseOptions(view=view)})
            rung, folder = base_rung(asked.asked_student, options), run.root / FOLDER / name
            fresh = greedy(examine(rung, problems, options, folder, judge, context))
            questions = Questions(run.root, asked, suites, [])
            log = folder / SCRATCH / "suites.jsonl"
            rows = ask_rung(rung, questions, log, judge, context, sampled=False)
            found.append(Untaught(fresh, right_by_suite(rows)))
    return max(found, key=lambda untaught: sum(untaught.right.values()))


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    quieten()
    progress = Progress()
    try:
        recipe = load_recipe(find_recipe(options.recipe), tuple(options.set))
        run = RunDir(options.run or Path("runs") / recipe.run.name)
        suites, folder = asked_suites(options)
        # Suites alone: no styles, which would be asked of every student.
        asked = (suites.model_copy(update={"style": ()}), folder)
        wanted = (options.traces, options.views, options.items)
        found = study(run, recipe, *wanted, asked, progress)
        problems = list(read_records(run.root / "01-problems" / "eval.jsonl", Problem))
        base = untaught(run, recipe, problems[: options.items], asked, progress)
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return Interrupted.exit_code
    text = table(found, base, options.margin) + "\n" + sentences(found, base, options.margin)
    folder = run.root / FOLDER
    write_json(folder / "granularity.json", as_json(found, base, options.margin))
    write_file(folder / "granularity.md", text)
    write_file(folder / "granularity.svg", plot(found, base))
    print(f"{text}\ntable and plot: {folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.granularity",
        description="Teach one student a view of the same traces, and name the smallest supervision"
        " that still transfers.",
    )
    parser.add_argument("recipe", nargs="?", default="default")
    parser.add_argument("--run", type=Path, help="run folder (default: runs/NAME of the recipe)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--traces", type=int, nargs="+", default=[20, 40], metavar="N")
    views = [view for view in VIEWS if view != CONTROL]
    parser.add_argument("--views", nargs="+", choices=list(VIEWS), default=views)
    parser.add_argument(
        "--items",
        type=int,
        default=100,
        help="evaluation items a student; another number teaches all students again",
    )
    add_suites(parser, share=0.1)
    parser.add_argument("--margin", type=float, default=5.0, help="points that may be lost")
    return parser


if __name__ == "__main__":
    start_again_on_huge_pages()
    sys.exit(main())

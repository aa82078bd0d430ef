"""The run: problems, traces, examples, SFT, practice, GGUF, ONNX, evaluation, gate, bundle, report.

    python -m pipeline.all [RECIPE] [--run FOLDER] [--set section.key=value] [--dry-run]
        [--until STAGE]

The only place that knows every stage. What is proven done is skipped; what a changed field touches
is done again, and nothing before it.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from pipeline import (
    bundle,
    collect,
    curate,
    evaluate,
    examples,
    export,
    gate,
    on_policy,
    problems,
    quantize,
    references,
    report,
    sft,
)
from pipeline import (
    general as general_data,
)
from pipeline.forecast import forecast
from pipeline.imported import IMPORTED
from pipeline.memory import start_again_on_huge_pages
from pipeline.pair import refuse_early
from pipeline.progress import Progress
from pipeline.quiet import quieten
from pipeline.recipe import (
    GeneralOptions,
    ProblemsOptions,
    Recipe,
    StudentOptions,
    TeacherOptions,
)
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.run import Context, Manifest, RunDir, Stage, run_stage
from pipeline.spread import check_strategy
from pipeline.store import write_json
from pipeline.tracking import follow
from serve.catalogue import REGRESSION_CASES
from serve.errors import DataError, Interrupted, RecipeError, RetortError
from serve.models import check_reference, unpinned_path

SAME_WISH_S = 5.0
# Whether teacher and student can work together is asked before these stages cost hours.
FIRST_COSTLY, TAUGHT, PRACTICE = "02", "04", "05"


def stages(recipe: Recipe) -> list[Stage]:
    """The table of contents, in order."""
    r = recipe
    traces = (r.teacher, r.traces)
    training = (r.student, r.sft, *r.training.numbers)
    supervision = (r.teacher, r.student, r.supervise, r.general)
    asked = r.asked_student
    examination, reference = (r.teacher, asked, r.evaluate), (r.teacher, asked, r.evaluate.plain)
    practice = r.on_policy.method != "none"
    student = "05-on-policy" if practice else "04-sft"
    trained = ("04-sft", "05-on-policy") if practice else ("04-sft",)
    files = ("06-gguf", "07-onnx")
    hard = ("03-references",) if r.curate.select == "s1" else ()
    items = ("01-problems",) if r.curate.decontaminate else ()
    general = ("02-general",) if r.general.wanted else ()
    teaching, learning = _unpinned(r.teacher), _unpinned(r.student)
    beside, own = (r.teacher, r.general), (*_sources(r.general), *teaching)
    known = ("02-traces", "03-curated", *general)
    everything = ("01-problems", *known, *hard, "04-examples", *trained, *files)
    examined, both = ("01-problems", *trained, *files), (*teaching, *learning)
    return [
        Stage("01-problems", problems, r.problems, (), sources=_sources(r.problems)),
        Stage("02-traces", collect, traces, ("01-problems",), reads=(IMPORTED,), sources=teaching),
        *([Stage(general[0], general_data, beside, (), sources=own)] if general else []),
        *([Stage(hard[0], references, reference, ("02-traces",), sources=both)] if hard else []),
        Stage("03-curated", curate, r.curate, ("02-traces", *items, *hard)),
        Stage("04-examples", examples, supervision, known, sources=learning),
        Stage("04-sft", sft, training, ("04-examples",), sources=learning),
        *(
            [
                Stage(
                    "05-on-policy",
                    on_policy,
                    (r.teacher, asked, r.on_policy),
                    ("01-problems", "04-sft"),
                    sources=teaching,
                )
            ]
            if practice
            else []
        ),
        Stage("06-gguf", quantize, r.gguf, (student,)),
        Stage("07-onnx", export, r.onnx, (student,)),
        Stage("08-evaluate", evaluate, examination, examined, sources=both),
        Stage(
            "09-gate",
            gate,
            (asked, r.evaluate, r.gate),
            ("01-problems", *trained, *files, "08-evaluate"),
            reads=(REGRESSION_CASES,),
        ),
        Stage("10-bundle", bundle, r, (student, *files, "09-gate")),
        Stage("report", report, r, (*everything, "08-evaluate", "09-gate"), files=report.FILES),
    ]


def _unpinned(model: TeacherOptions | StudentOptions) -> tuple[str, ...]:
    """Where it lies, if it may be another one by the next start."""
    path = unpinned_path(model.model, model.sha256)
    return () if path is None else (str(path),)


def _sources(options: ProblemsOptions | GeneralOptions) -> tuple[str, ...]:
    """What may lie on this disk: files, and data sets that may be local folders."""
    return (*options.files, *(d.name for d in options.datasets))


def plan(run: RunDir, recipe: Recipe) -> list[tuple[Stage, str]]:
    """Each stage with "done", "to do", or why its state is not known yet. Reads, never writes."""
    proven: dict[str, Manifest] = {}
    lines = []
    for stage in stages(recipe):
        if any(name not in proven for name in stage.needs):
            lines.append((stage, "to do"))
            continue
        fingerprint = run.fingerprint(stage, {n: proven[n] for n in stage.needs}, recipe.run.seed)
        manifest = run.proven(stage, fingerprint)
        if manifest is not None:
            proven[stage.name] = manifest
        lines.append((stage, "done" if manifest is not None else "to do"))
    return lines


def check_finished(run: RunDir, recipe: Recipe) -> None:
    """Raises DataError where a stage up to the evaluation would be done again: what lies there then
    does not belong together."""
    for stage, state in plan(run, recipe):
        if state != "done":
            raise DataError(
                f"{run.root} is not finished: {stage.name} is to be done, or done again",
                hint=f"python -m pipeline.all RECIPE --run {run.root}",
            )
        if stage.name == "08-evaluate":
            return


def execute(run: RunDir, recipe: Recipe, progress: Progress, until: str | None = None) -> None:
    """Do every stage that is not proven done, in order; `until`: the last one that is wanted."""
    proven: dict[str, Manifest] = {}
    context = Context.of(recipe, progress)
    check_strategy(recipe.training, recipe.on_policy.method)
    follow(recipe.training.report_to, run.root / "logs")
    if recipe.teacher.engine != "http":
        check_reference(recipe.teacher.model)
    check_reference(recipe.student.model)
    write_json(run.root / "recipe.json", recipe.model_dump(mode="json"))
    asked = False
    for stage in stages(recipe):
        inputs = {name: proven[name] for name in stage.needs}
        fingerprint = run.fingerprint(stage, inputs, recipe.run.seed)
        manifest = run.proven(stage, fingerprint)
        if manifest is None:
            teaches = until is None or until >= TAUGHT
            if teaches and not asked and FIRST_COSTLY <= stage.name < PRACTICE:
                practises = until is None or until >= PRACTICE
                refuse_early(recipe, practises and recipe.on_policy.method != "none")
                asked = True
            progress.say(f"{stage.name} …")
            manifest = run_stage(run, stage, fingerprint, context)
            progress.say(f"{stage.name} done in {manifest.took_s:.0f} s")
        else:
            progress.say(f"{stage.name} unchanged")
        proven[stage.name] = manifest
        if stage.name == until:
            return


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print the ladder. Returns the exit code; errors become one line on stderr."""
    options = _parser().parse_args(arguments)
    quieten()
    interrupt = _Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background jobs have it
            signal.signal(number, interrupt)
    progress = Progress()
    try:
        recipe = load_recipe(find_recipe(options.recipe), tuple(options.set))
        names = [stage.name for stage in stages(recipe)]
        if options.until not in (None, *names):
            raise RecipeError(f"no stage {options.until!r}", hint=f"there are {', '.join(names)}")
        run = RunDir(options.run or Path("runs") / recipe.run.name)
        if options.dry_run:
            for stage, state in plan(run, recipe):
                print(f"{stage.name:14} {state}")
            print("\n" + "\n".join(forecast(recipe)))
            return 0
        with run.locked(), run.logged() as log_path:
            try:
                execute(run, recipe, progress, options.until)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted; {run.root} keeps what is done", hint="the same command goes on"
                ) from None
            except RetortError:
                raise
            except Exception:
                Context(seed=0, progress=progress).log.exception("unexpected failure")
                print(f"error: unexpected failure, see {log_path}", file=sys.stderr)
                raise
        if options.until not in (None, "report"):
            print(f"stopped after {options.until}; the same command without --until goes on")
            return 0
        exit_code = report.print_results(run.root)
        print(f"\nreport: {run.root / 'report.html'}\nnext:   python -m apps.chat {run.root}")
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.all",
        description="Distil a teacher into a student, quantize it, evaluate it, write the report.",
    )
    parser.add_argument(
        "recipe", nargs="?", default="default", help="a TOML file, or the name of a built-in recipe"
    )
    parser.add_argument("--run", type=Path, help="run folder (default: runs/NAME of the recipe)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one field of the recipe; may be given again",
    )
    parser.add_argument("--until", metavar="STAGE", help="the last stage to do, as 04-sft")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and do nothing"
    )
    return parser


class _Interrupt:
    """The signal handler: one wish to stop is one KeyboardInterrupt, however many signals say it.

    `timeout` and impatient people send two, and the second must not disturb the way out.
    """

    def __init__(self) -> None:
        self._accepted_s = -math.inf

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if now_s - self._accepted_s > SAME_WISH_S:
            self._accepted_s = now_s
            raise KeyboardInterrupt


if __name__ == "__main__":
    start_again_on_huge_pages()
    sys.exit(main())

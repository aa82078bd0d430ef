"""The published methods side by side: one student a recipe, all asked the same.

    python -m pipeline.compare recipes [--run FOLDER] [--recipes plain r1 …] [--items 152]
        [--suite-share 0.4]

Each recipe of `pipeline/recipes/embedded/` runs to its last training stage in a folder of its own;
an answer of the teacher that two recipes want is asked once. The base student is asked the same.
Writes `FOLDER/recipes.json` and `FOLDER/recipes.md`. What a student answered is kept, its weights
are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from pydantic import ValidationError

from pipeline.all import execute, stages
from pipeline.answer_pool import pooled
from pipeline.examine import (
    ON_POLICY_STAGE,
    SFT_STAGE,
    Rung,
    base_rung,
    checkpoint_rung,
    examine,
)
from pipeline.ladder import Judged
from pipeline.ledger import ASKING
from pipeline.memory import give_back_memory, keep_freed_memory
from pipeline.methods_table import UNTAUGHT, Method, sentences, table
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.recipe_files import FOLDER, find_recipe, load_recipe
from pipeline.records import Problem, content_key
from pipeline.run import SCRATCH, Context, Manifest, RunDir
from pipeline.store import read_records, write_file, write_json, write_records
from pipeline.tasks.judge import Judge
from pipeline.transfer import ask_rung
from pipeline.transfer_questions import Questions
from pipeline.transfer_suites import Suites, add_suites, suites_key
from pipeline.transfer_summary import FRESH, Asked, summary
from serve.errors import DataError

EMBEDDED = "embedded"
# The recipe that only says what the others share.
BASE = "base"
METHOD, ASKED, POOL = "method.json", "asked.jsonl", "pool"


def built_in() -> list[str]:
    """Names of the embedded recipes, the plain one first, a control among them."""
    names = sorted(p.stem for p in (FOLDER / EMBEDDED).glob("*.toml") if p.stem != BASE)
    return sorted(names, key=lambda name: name != "plain")


def compare_recipes(
    root: Path,
    names: Sequence[str],
    overrides: Sequence[str],
    items: int,
    suites: tuple[Suites, Path],
    progress: Progress,
) -> list[Method]:
    """Teach and examine a student by every recipe, and write the table.

    `suites` with the folder they lie in. Raises RetortError.
    """
    recipes = {n: load_recipe(find_recipe(f"{EMBEDDED}/{n}"), tuple(overrides)) for n in names}
    methods = []
    for name, recipe in recipes.items():
        progress.say(f"recipe {name}")
        methods.append(_method(root, name, recipe, items, suites, progress))
    plain = load_recipe(find_recipe(f"{EMBEDDED}/{BASE}"), tuple(overrides))
    methods.insert(0, _untaught(root, names[0], plain, items, suites, progress))
    write_json(root / "recipes.json", [m.model_dump(mode="json") for m in methods])
    write_file(root / "recipes.md", f"{table(methods)}\n{sentences(methods)}\n")
    return methods


def _method(
    root: Path,
    name: str,
    recipe: Recipe,
    items: int,
    suites: tuple[Suites, Path],
    progress: Progress,
) -> Method:
    run = RunDir(root / name)
    last = SFT_STAGE if recipe.on_policy.method == "none" else ON_POLICY_STAGE
    with run.locked(), run.logged():
        execute(run, recipe, progress, until="01-problems")
        problems = list(read_records(run.root / "01-problems" / "eval.jsonl", Problem))
        if items > len(problems):
            raise DataError(f"{items} items wanted, {len(problems)} in {run.root}")
        known = _known(run, recipe, last, items, suites)
        if known is not None:
            return known
        with pooled(root / POOL, run.root):
            execute(run, recipe, progress, until=last)
        rung = checkpoint_rung(run.root / last, recipe.asked_student, recipe.evaluate.greedy)
        folder = run.root / "evaluated"
        rows = _asked(run.root, recipe, rung, folder, problems[:items], suites, progress)
        write_records(run.root / ASKED, rows)
        method = _measured(run, recipe, last, items, suites, rows)
        write_json(run.root / METHOD, method.model_dump(mode="json"))
        # 270 MB a stage and recipe; what was answered is what is compared.
        for stage in (SFT_STAGE, ON_POLICY_STAGE):
            (run.root / stage / "model.safetensors").unlink(missing_ok=True)
    return method


def _fingerprint(
    run: RunDir, recipe: Recipe, last: str, items: int, suites: tuple[Suites, Path]
) -> str | None:
    """Of what the student was taught and asked; None before its last stage is done as it would be
    now, and when what people wrote for a stage changed since."""
    manifests: dict[str, Manifest] = {}
    for stage in stages(recipe):
        manifest = run.manifest(stage)
        inputs = {name: manifests[name] for name in stage.needs}
        if manifest is None or manifest.fingerprint != run.fingerprint(
            stage, inputs, recipe.run.seed
        ):
            return None
        if stage.changed_source(manifest) is not None:
            return None
        manifests[stage.name] = manifest
        if stage.name == last:
            break
    settings = (recipe.model_dump(mode="json"), items, suites_key(suites))
    return content_key(manifests[last].fingerprint, settings)


def _known(
    run: RunDir, recipe: Recipe, last: str, items: int, suites: tuple[Suites, Path]
) -> Method | None:
    try:
        found = Method.model_validate_json((run.root / METHOD).read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.fingerprint == _fingerprint(run, recipe, last, items, suites) else None


def _untaught(
    root: Path,
    name: str,
    recipe: Recipe,
    items: int,
    suites: tuple[Suites, Path],
    progress: Progress,
) -> Method:
    """The base student, asked as `recipe` says; `name`: one that is done, with the problems."""
    progress.say(UNTAUGHT)
    run = root / name
    problems = list(read_records(run / "01-problems" / "eval.jsonl", Problem))[:items]
    rung = base_rung(recipe.student, recipe.evaluate.greedy)
    rows = _asked(run, recipe, rung, root / "base", problems, suites, progress)
    return _method_of(UNTAUGHT, "", rows, supervised=0, teacher=0, took_s=0.0)


def _asked(
    run: Path,
    recipe: Recipe,
    rung: Rung,
    folder: Path,
    problems: Sequence[Problem],
    suites: tuple[Suites, Path],
    progress: Progress,
) -> list[Asked]:
    """`run`: the problems and traces. `folder`: what was answered is kept there."""
    options = recipe.evaluate.greedy
    context = Context.of(recipe, progress)
    keep_freed_memory(one_heap=True)
    with Judge() as judge:
        fresh: list[Judged] = examine(rung, problems, options, folder, judge, context)
        questions = Questions(run, recipe, suites, fresh)
        log = folder / SCRATCH / "answers.jsonl"
        rows = ask_rung(rung, questions, log, judge, context, sampled=False)
    give_back_memory()
    keep_freed_memory()
    return rows


def _measured(
    run: RunDir,
    recipe: Recipe,
    last: str,
    items: int,
    suites: tuple[Suites, Path],
    rows: Sequence[Asked],
) -> Method:
    manifests = {s.name: m for s in stages(recipe) if (m := run.manifest(s)) is not None}
    fingerprint = _fingerprint(run, recipe, last, items, suites)
    assert fingerprint is not None  # the stage has just been done
    names = [stage.name for stage in stages(recipe)]
    # Traces are left out: a recipe that comes later finds answers that an earlier one paid for.
    spent = names[names.index("04-examples") : names.index(last) + 1]
    practised = manifests[ON_POLICY_STAGE].counts if last == ON_POLICY_STAGE else {}
    asked = sum(manifests[name].counts["completion_tokens"] for name in ASKING if name in manifests)
    return _method_of(
        run.root.name,
        fingerprint,
        rows,
        supervised=manifests[SFT_STAGE].counts["supervised_tokens"],
        teacher=asked + practised.get("teacher_tokens", 0),
        took_s=sum(manifests[name].took_s for name in spent),
    )


def _method_of(
    name: str, fingerprint: str, rows: Sequence[Asked], supervised: int, teacher: int, took_s: float
) -> Method:
    found = summary(rows)
    rung = next(iter(found["rungs"]))
    own = [r for r in rows if r.suite == FRESH]
    return Method(
        name=name,
        fingerprint=fingerprint,
        right={r.item: r.verdict.passed for r in own if r.verdict.passed is not None},
        suites={suite: cells[rung]["whole"] for suite, cells in found["suites"].items()},
        rung=found["rungs"][rung],
        answer_tokens=round(mean(r.completion.completion_tokens for r in own), 1),
        supervised_tokens=supervised,
        teacher_tokens=teacher,
        minutes=round(took_s / 60, 1),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m pipeline.compare recipes` takes."""
    names = built_in()
    parser.add_argument("--run", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--recipes", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--items", type=int, default=152, help="fresh items a student")
    add_suites(parser, share=1.0)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")

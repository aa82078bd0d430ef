"""May this teacher and this student work together? Asked before any hour is spent.

    python -m pipeline.pair [RECIPE] [--set section.key=value]

Reads tokenizers, templates and shapes; measures a few answers; writes nothing but caches. A pair
that cannot work is refused with the reason (exit code 3), a risky one warns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import suppress

from rich.console import Console
from rich.markup import escape

from pipeline.on_policy_options import Method
from pipeline.pair_checks import (
    Finding,
    findings,
    practice_findings,
    shown_examples,
    shown_view,
    student_findings,
)
from pipeline.pair_forecast import forecast
from pipeline.pair_method import choose_method
from pipeline.quiet import quieten
from pipeline.recipe import Recipe
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.student import student_checkpoint
from serve.errors import DataError, EngineError, RetortError

COLOURS = {"fine": "green", "note": "cyan", "risk": "yellow", "refused": "red"}


def refuse_early(recipe: Recipe, practises: bool) -> None:
    """What can be known of the pair without its weights: a run asks this before its traces.

    Raises DataError for a student that cannot be taught, and where it `practises` for a teacher
    that cannot grade. A server is asked if it is there; traces may be done, and it off meanwhile.
    """
    from transformers import AutoTokenizer

    checkpoint = student_checkpoint(recipe.student)
    try:
        if practises:
            with suppress(EngineError):
                choose_method(recipe.teacher, recipe.on_policy, checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        _must_not_refuse(list(student_findings(recipe, checkpoint, tokenizer)))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"this pair does not load: {error}") from error


def _must_not_refuse(found: list[Finding]) -> None:
    refused = [finding for finding in found if finding.kind == "refused"]
    if refused:
        raise DataError(f"this pair cannot work: {refused[0].text}")


def examine_pair(recipe: Recipe, console: Console) -> list[Finding]:
    """Print all that is found. Raises DataError when the pair is refused."""
    checkpoint = student_checkpoint(recipe.student)
    found = findings(recipe, checkpoint)
    _show(found, console)
    _must_not_refuse(found)
    method: Method = "none"
    if recipe.on_policy.method != "none":
        choice = choose_method(recipe.teacher, recipe.on_policy, checkpoint)
        console.print(f"[green]{'method':8}[/] {choice.method}: {choice.why}")
        method = choice.method
        _show(practice_findings(recipe, method), console)
    view = shown_view(recipe)
    console.print(
        f"\nwhat view {view} learns from (three worked examples; loss on the green part alone):"
    )
    for text in shown_examples(recipe, checkpoint, view):
        console.print(text)
        console.print()
    for line in forecast(recipe, checkpoint, method):
        console.print(line, highlight=False)
    return found


def _show(found: Iterable[Finding], console: Console) -> None:
    for finding in found:
        console.print(f"[{COLOURS[finding.kind]}]{finding.kind:8}[/] {escape(finding.text)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.pair",
        description="Check a teacher and a student before a run: vocabularies, templates, method, "
        "memory, disk, time.",
    )
    parser.add_argument("recipe", nargs="?", default="default")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args(arguments)
    quieten()
    try:
        examine_pair(load_recipe(find_recipe(options.recipe), tuple(options.set)), Console())
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError, KeyError) as error:  # transformers, at a folder it cannot read
        print(f"error: this pair does not load: {error}", file=sys.stderr)
        return DataError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Did the student learn to reason, or to imitate? Other suites, other words, cut reasoning.

    python -m pipeline.transfer [--run FOLDER] [--suites NAME] [--rungs "SFT student" …]

Reads a finished run: its evaluation's answers are used, not asked again. Each rung is opened once
and asked the suites, the same problems in other styles, many samples of a few, and its own answers
again with the reasoning cut short or swapped. Writes `FOLDER/transfer/` (`answers.jsonl`,
`contamination.jsonl`, `transfer.json`, `transfer.md`) and the report anew. Rungs that were asked
the same before stay beside those asked now; other suites replace them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline import report
from pipeline.all import check_finished
from pipeline.asking import ask
from pipeline.budget_forcing import waited
from pipeline.evaluate import rungs_of
from pipeline.examine import Rung, inputs_of
from pipeline.forced import ANNOUNCED, first_line
from pipeline.kept_answers import KeptAnswers
from pipeline.ladder import Judged
from pipeline.ledger import manifest_of
from pipeline.memory import give_back_memory, keep_freed_memory, start_again_on_huge_pages
from pipeline.pair_method import goes_on
from pipeline.progress import Progress
from pipeline.quiet import quieten
from pipeline.recipe import TeacherOptions
from pipeline.recipe_files import recorded_recipe
from pipeline.records import content_key
from pipeline.report import TRANSFER as FOLDER
from pipeline.report import TRANSFER_SUMMARY as SUMMARY
from pipeline.report_again import show_again
from pipeline.run import SCRATCH, Context, RunDir
from pipeline.store import read_records, write_file, write_json, write_records
from pipeline.tasks.judge import Judge
from pipeline.transfer_questions import Questions
from pipeline.transfer_suites import load_suites, suites_key
from pipeline.transfer_summary import FRESH, TEACHER, Asked, summary
from pipeline.transfer_table import text_of
from serve.errors import Interrupted, RetortError, UsageError
from serve.messages import Completion, Request
from serve.reasoning import tags_of


def ask_rung(
    rung: Rung,
    questions: Questions,
    log: Path,
    judge: Judge,
    context: Context,
    sampled: bool = True,
    forced: bool = True,
) -> list[Asked]:
    """The rung's answers, judged, those of the evaluation among them. The engine is opened once."""
    asked = list(questions.of(rung, sampled, forced))

    def more(wanted: Sequence[Request]) -> dict[str, Completion]:
        return ask(rung.open, wanted, log, rung.name, context, rung.context_tokens)

    answers = more([q.request for q in asked])
    whole = [q.request for q in asked if not q.request.begun]
    answers |= waited(whole, answers, questions.options.waits, more)
    rows = fresh_of(questions, rung)
    for question in asked:
        said = answers[question.request.key]
        judged = said
        if question.request.begun:
            said = first_line(said)
            # What was given is not the answer: another's reasoning may hold its box.
            judged = said.model_copy(update={"text": f"{ANNOUNCED}{said.text}"})
            said = said.model_copy(update={"text": question.request.begun + said.text})
        rows.append(
            Asked(
                rung=rung.name,
                suite=question.suite,
                style=question.style,
                item=question.problem.key,
                family=question.problem.family,
                sample=question.sample,
                completion=said,
                verdict=judge.verdict(question.problem, judged),
            )
        )
    return rows


def _goes_on(
    rung: Rung, questions: Questions, teacher: TeacherOptions, log: Path, context: Context
) -> bool:
    """Whether the rung goes on from words that it is given; of servers not all do. One whose
    answers are all in the log is not asked."""
    if rung.name != TEACHER or teacher.engine != "http":
        return True
    with closing(KeptAnswers(log)) as kept:
        if all(question.request.key in kept for question in questions.forced(rung)):
            return True
    tagged = any(tags_of(a.completion.text) for a in questions.own(rung))
    # A template may cut what was said up to the reasoning's end; the server then refuses.
    found = goes_on(teacher, "<think>\nI count.\n</think>\n" if tagged else "")
    if not found:
        context.log.warning(
            "the teacher's server does not go on from words that it is given "
            "(continue_final_message): its answers are not asked again from their beginnings"
        )
    return found


def fresh_of(questions: Questions, rung: Rung) -> list[Asked]:
    """What the rung said in the run's own evaluation."""
    return [
        Asked(
            rung=rung.name,
            suite=FRESH,
            style="",
            item=a.item,
            family=a.family,
            completion=a.completion,
            verdict=a.verdict,
        )
        for a in questions.own(rung)
    ]


def transfer(root: Path, name: str, wanted: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Ask the rungs of a finished run (`wanted`: none for all), write and return the summary.

    Raises DataError, RecipeError or UsageError.
    """
    recipe = recorded_recipe(root)
    run = RunDir(root)
    check_finished(run, recipe)
    suites = load_suites(name)
    rungs = rungs_of((recipe.teacher, recipe.asked_student, recipe.evaluate), inputs_of(root))
    names = [rung.name for rung in rungs]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise UsageError(f"no rung {unknown[0]!r}", hint=f"there are {', '.join(names)}")
    answered = list(read_records(root / "08-evaluate" / "answers.jsonl", Judged))
    questions = Questions(root, recipe, suites, answered)
    log = root / FOLDER / SCRATCH / "answers.jsonl"
    evaluated = manifest_of(root / "08-evaluate")["fingerprint"]
    asking = content_key(evaluated, suites_key(suites))
    rows: list[Asked] = []
    keep_freed_memory(one_heap=True)
    with run.locked(), run.logged(), Judge() as judge:
        context = Context.of(recipe, progress)
        before = _asked_before(root, asking)
        for rung in rungs:
            if not wanted or rung.name in wanted:
                started_s = time.monotonic()
                forced = _goes_on(rung, questions, recipe.teacher, log, context)
                rows += ask_rung(rung, questions, log, judge, context, forced=forced)
                took_s = time.monotonic() - started_s
                context.log.info("%s: all suites in %.0f s", rung.name, took_s)
                give_back_memory()
            elif rung.name in before:
                rows += before[rung.name]
            elif rung.name == TEACHER:  # so that the others stand beside it
                rows += fresh_of(questions, rung)
        flagged = questions.overlaps()
        # Killed in between, answers would stand beside the summary of others.
        (root / FOLDER / SUMMARY).unlink(missing_ok=True)
        write_records(root / FOLDER / "answers.jsonl", rows)
        write_records(root / FOLDER / "contamination.jsonl", flagged)
        found = {"fingerprint": evaluated, "asking": asking, **summary(rows, flagged)}
        write_json(root / FOLDER / SUMMARY, found)
        write_file(root / FOLDER / "transfer.md", text_of(found))
        show_again(root, progress)
    return found


def _asked_before(root: Path, asking: str) -> dict[str, list[Asked]]:
    """Rung -> what an earlier call kept of it; none where that asked something else."""
    try:
        if json.loads((root / FOLDER / SUMMARY).read_bytes())["asking"] != asking:
            return {}
    except (OSError, ValueError, KeyError):
        return {}
    found: dict[str, list[Asked]] = {}
    for row in read_records(root / FOLDER / "answers.jsonl", Asked):
        found.setdefault(row.rung, []).append(row)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.transfer",
        description="Ask the models of a finished run what they were not trained on.",
    )
    parser.add_argument("--run", type=Path, default=Path("runs/default"))
    parser.add_argument("--suites", default="embedded", help="a TOML file, or a built-in name")
    parser.add_argument("--rungs", nargs="+", default=[], metavar="RUNG", help="default: all")
    options = parser.parse_args(arguments)
    quieten()
    try:
        found = transfer(options.run, options.suites, options.rungs, Progress())
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return Interrupted.exit_code
    print(text_of(found))
    print(f"report: {options.run / report.FILES[0]}")
    return 0


if __name__ == "__main__":
    start_again_on_huge_pages()
    sys.exit(main())

"""Did the student learn to reason, or to imitate? Other suites, other words, cut reasoning.

    python -m pipeline.transfer [--run FOLDER] [--suites NAME] [--rungs "SFT student" …]

Reads a finished run: its evaluation's answers are used, not asked again. Each rung is opened once
and asked the suites, the same problems in other styles, and its own answers again with the
reasoning cut short or swapped. Writes `FOLDER/transfer/`: `answers.jsonl`, `transfer.json` and
`transfer.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.all import QUIET, stages
from pipeline.asking import ask, request_for
from pipeline.evaluate import rungs_of
from pipeline.examine import Rung, inputs_of
from pipeline.forced import forced_beginnings
from pipeline.ladder import Judged
from pipeline.memory import give_back_memory, keep_freed_memory, start_again_on_huge_pages
from pipeline.progress import Progress
from pipeline.recipe import Recipe, recorded_recipe
from pipeline.records import Problem, Trace, content_key
from pipeline.run import SCRATCH, Context, RunDir
from pipeline.store import read_records, write_file, write_json, write_records
from pipeline.supervise import reasoning_of
from pipeline.tasks.judge import Judge
from pipeline.transfer_suites import Suites, load_suites, styled, suite_problems
from pipeline.transfer_table import FORCED, FRESH, STYLES, Asked, summary, text_of
from serve.errors import DataError, Interrupted, RetortError, UsageError
from serve.messages import Message, Request, Sampling

FOLDER = "transfer"
FORCED_TOKENS = 24
# (suite, name of the style or of the cut, problem, what is asked)
Question = tuple[str, str, Problem, Request]


class Examination:
    """What every rung of a run is asked, and of what the run knows already."""

    def __init__(self, root: Path, recipe: Recipe, suites: Suites, folder: Path) -> None:
        self.root, self.recipe, self.suites = root, recipe, suites
        problems = [
            problem
            for side in ("train", "practice", "eval", "gate")
            for problem in read_records(root / "01-problems" / f"{side}.jsonl", Problem)
        ]
        known = {p.question for p in problems}
        self.eval = list(read_records(root / "01-problems" / "eval.jsonl", Problem))
        self.styled = self.eval[: suites.styles.items]
        self.problems = {
            suite.name: suite_problems(suite, folder, recipe.run.seed, known)
            for suite in suites.suite
        }
        self.fresh = list(read_records(root / "08-evaluate" / "answers.jsonl", Judged))
        self.shots = _shots(root)

    def questions(self, rung: Rung) -> Iterator[Question]:
        """Everything `rung` is to be asked."""
        whole = Sampling(max_tokens=self.recipe.evaluate.max_tokens)
        for suite, problems in self.problems.items():
            for p in problems:
                yield suite, "", p, request_for(rung.identity, rung.messages(p), whole)
        for style in self.suites.style:
            for p in self.styled:
                messages = styled(rung.messages(p), style, self.shots.get(p.family, []))
                if messages is not None:
                    yield STYLES, style.name, p, request_for(rung.identity, messages, whole)
        short = Sampling(max_tokens=FORCED_TOKENS)
        by_key = {p.key: p for p in self.styled}
        own = [a for a in self.fresh if a.rung == rung.name and a.sample == 0 and a.item in by_key]
        for (item, name), begun in forced_beginnings(own).items():
            p = by_key[item]
            request = request_for(rung.identity, rung.messages(p), short)
            changed = {"begun": begun, "key": content_key(request.key, begun)}
            yield FORCED, name, p, request.model_copy(update=changed)

    def ask(self, rung: Rung, judge: Judge, context: Context) -> list[Asked]:
        """The rung's answers, judged, those of the evaluation among them."""
        questions = list(self.questions(rung))
        requests = [request for *_, request in questions]
        log = self.root / FOLDER / SCRATCH / "answers.jsonl"
        answers = ask(rung.open, requests, log, rung.name, context)
        rows = [
            Asked(
                rung=a.rung,
                suite=FRESH,
                style="",
                item=a.item,
                family=a.family,
                completion=a.completion,
                verdict=a.verdict,
            )
            for a in self.fresh
            if a.rung == rung.name and a.sample == 0
        ]
        for suite, name, problem, request in questions:
            said = answers[request.key]
            if request.begun:
                said = said.model_copy(update={"text": request.begun + said.text})
            rows.append(
                Asked(
                    rung=rung.name,
                    suite=suite,
                    style=name,
                    item=problem.key,
                    family=problem.family,
                    completion=said,
                    verdict=judge.verdict(problem, said),
                )
            )
        return rows


def _shots(root: Path) -> dict[str, list[tuple[Message, Message]]]:
    """Kept traces by family, as turns of question and answer: what few-shot prompts begin with."""
    found: dict[str, list[tuple[Message, Message]]] = {}
    for trace in read_records(root / "03-curated" / "kept.jsonl", Trace):
        reasoning = reasoning_of(trace.completion.text)
        text = f"{reasoning}\nAnswer: {trace.verdict.extracted or ''}"
        turns = (
            Message(role="user", content=trace.problem.question),
            Message(role="assistant", content=text),
        )
        found.setdefault(trace.problem.family, []).append(turns)
    return found


def transfer(root: Path, name: str, wanted: Sequence[str], progress: Progress) -> list[Asked]:
    """Ask every rung of a finished run. Raises DataError or RecipeError."""
    recipe = recorded_recipe(root)
    run = RunDir(root)
    for stage in stages(recipe)[:-1]:
        if run.manifest(stage) is None:
            raise DataError(f"{root} is not finished: {stage.name} has no manifest")
    suites, folder = load_suites(name)
    rungs = rungs_of((recipe.teacher, recipe.asked_student, recipe.evaluate), inputs_of(root))
    names = [rung.name for rung in rungs]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise UsageError(f"no rung {unknown[0]!r}", hint=f"there are {', '.join(names)}")
    examination = Examination(root, recipe, suites, folder)
    rows: list[Asked] = []
    keep_freed_memory(one_heap=True)
    with run.locked(), run.logged(), Judge() as judge:
        context = Context(recipe.run.seed, progress)
        for rung in rungs:
            if not wanted or rung.name in wanted:
                rows += examination.ask(rung, judge, context)
                give_back_memory()
    write_records(root / FOLDER / "answers.jsonl", rows)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.transfer",
        description="Ask the models of a finished run what they were not trained on.",
    )
    parser.add_argument("--run", type=Path, default=Path("runs/default"))
    parser.add_argument("--suites", default="embedded", help="a TOML file, or a built-in name")
    parser.add_argument("--rungs", nargs="+", default=[], metavar="RUNG", help="default: all")
    options = parser.parse_args(arguments)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        rows = transfer(options.run, options.suites, options.rungs, Progress())
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return Interrupted.exit_code
    found = summary(rows)
    write_json(options.run / FOLDER / "transfer.json", found)
    write_file(options.run / FOLDER / "transfer.md", text_of(found))
    print(text_of(found))
    return 0


if __name__ == "__main__":
    start_again_on_huge_pages()
    sys.exit(main())

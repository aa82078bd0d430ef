"""Traces that `python -m pipeline.traces import` put beside a run, for the stage that collects.

What they say is believed of the teacher's words only: verdicts are made anew, and a question of the
evaluation is left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path

from pipeline.kept_answers import KeptAnswers
from pipeline.records import Problem, Trace
from pipeline.store import read_records, replacing
from pipeline.tasks.judge import Judge

IMPORTED = "imported-traces.jsonl"


def share_imported(source: Path, target: Path) -> None:
    """The run at `target` has the imported traces of that at `source`, or none as well."""
    if (source / IMPORTED).exists():
        with (source / IMPORTED).open("rb") as rows, replacing(target / IMPORTED) as copy:
            shutil.copyfileobj(rows, copy)
    else:
        (target / IMPORTED).unlink(missing_ok=True)


class Imported:
    """The traces of `path` (None: no file) beside those that are `asked`, by key."""

    def __init__(self, path: Path | None, asked: Collection[str], problems: Path) -> None:
        self._path, self._asked, self._problems = path, asked, problems

    def answer(self, log_path: Path) -> None:
        """Answers to what would be asked are put where answers are kept, and so not asked."""
        if self._path is None:
            return
        with closing(KeptAnswers(log_path)) as known:
            for trace in self._traces():
                if trace.key in self._asked and trace.key not in known:
                    known.add(trace.key, trace.completion)

    def beside(self, judge: Judge) -> Iterator[Trace]:
        """The others, judged, by their keys."""
        evaluated = {
            problem.question
            for side in ("eval", "gate")
            for problem in read_records(self._problems / f"{side}.jsonl", Problem)
            if self._path
        }
        for trace in self._traces():
            if trace.key not in self._asked and trace.problem.question not in evaluated:
                verdict = judge.verdict(trace.problem, trace.completion)
                yield trace.model_copy(update={"verdict": verdict})

    def _traces(self) -> Iterator[Trace]:
        return read_records(self._path, Trace) if self._path else iter(())

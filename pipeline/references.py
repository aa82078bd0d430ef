"""Optional stage between traces and curation: which problems are easy, because others solve them.

Reads `traces.jsonl`; asks each reference model the problems that have a right trace, greedily, and
writes `references.jsonl` sorted by problem: who solved it. The references are the untrained student
and the teacher without its worked examples (s1 used two models of other sizes); both end their
thinking where they like, whatever the recipe's evaluation does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.examine import Rung, base_rung, examine
from pipeline.memory import give_back_memory, keep_freed_memory
from pipeline.prompts import teacher_messages
from pipeline.recipe import EvaluateOptions, StudentOptions, TeacherOptions
from pipeline.records import Trace
from pipeline.run import Context
from pipeline.selection import Solved
from pipeline.store import read_records, write_records
from pipeline.tasks.judge import Judge
from pipeline.teacher import open_teacher, room_of, teacher_identity

STAGE_VERSION = 3
LIBRARIES = ("llama-cpp-python", "transformers", "torch", "reasoning-gym", "math-verify")
ZERO_SHOT = "teacher without examples"

Config = tuple[TeacherOptions, StudentOptions, EvaluateOptions]


def run(config: Config, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Ask and judge. Raises EngineError when a reference cannot answer."""
    teacher, student, alone = config
    traces = read_records(inputs["02-traces"] / "traces.jsonl", Trace)
    by_key = {t.problem.key: t.problem for t in traces if t.verdict.passed}
    problems = [problem for _, problem in sorted(by_key.items())]
    teacher_tokens = 0
    solved: dict[str, list[str]] = {problem.key: [] for problem in problems}
    keep_freed_memory(one_heap=True)
    with Judge() as judge:
        for rung in (base_rung(student, alone), _zero_shot(teacher)):
            for answer in examine(rung, problems, alone, out, judge, context):
                if rung.name == ZERO_SHOT:
                    teacher_tokens += answer.completion.completion_tokens
                if answer.verdict.passed:
                    solved[answer.item].append(rung.name)
            give_back_memory()
    rows = [Solved(problem=key, by=tuple(names)) for key, names in sorted(solved.items())]
    write_records(out / "references.jsonl", rows)
    return {
        "problems": len(rows),
        "unsolved": sum(not row.by for row in rows),
        "completion_tokens": teacher_tokens,
    }


def _zero_shot(teacher: TeacherOptions) -> Rung:
    bare = teacher.model_copy(update={"examples": ()})
    return Rung(
        ZERO_SHOT,
        teacher_identity(teacher),
        None,
        lambda: open_teacher(teacher),
        lambda p: teacher_messages(bare, p.question, p.family),
        context_tokens=room_of(teacher),
    )

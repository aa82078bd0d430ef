"""Stage 08: teacher, base student, trained student and every artifact on the same fresh items.

Reads `eval.jsonl`, `04-sft`, `05-on-policy` if there is one, `06-gguf`, `07-onnx`; writes
`answers.jsonl` (every judged answer) and `ladder.json` (one row a rung). Each rung answers all
items greedily and the first `k_items` with `k` samples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.examine import (
    ON_POLICY_STAGE,
    SFT_STAGE,
    Rung,
    artifact_rungs,
    base_rung,
    checkpoint_rung,
    examine,
)
from pipeline.ladder import Judged, ladder_rows
from pipeline.memory import give_back_memory, keep_freed_memory
from pipeline.prompts import teacher_messages
from pipeline.recipe import EvaluateOptions, StudentOptions, TeacherOptions
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.store import read_records, write_json, write_records
from pipeline.tasks.judge import Judge
from pipeline.teacher import open_teacher, room_of, teacher_identity
from serve.messages import Message

STAGE_VERSION = 5
LIBRARIES = (
    "llama-cpp-python",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "onnxruntime-genai-cuda",
    "transformers",
    "torch",
    "reasoning-gym",
    "math-verify",
)

Config = tuple[TeacherOptions, StudentOptions, EvaluateOptions]


def run(config: Config, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Answer, judge and tabulate. A rung that cannot answer raises EngineError with its name."""
    options = config[2]
    keep_freed_memory(one_heap=True)
    problems = list(read_records(inputs["01-problems"] / "eval.jsonl", Problem))
    judged: list[Judged] = []
    took_s: dict[str, float] = {}
    rungs = rungs_of(config, inputs)
    with Judge() as judge:
        for rung in rungs:
            started_s = time.monotonic()
            judged += examine(rung, problems, options, out, judge, context)
            took_s[rung.name] = round(time.monotonic() - started_s, 1)
            give_back_memory()
    write_records(out / "answers.jsonl", judged)
    rows = ladder_rows(judged, [(r.name, r.size_bytes) for r in rungs], options.k)
    write_json(out / "ladder.json", {"rows": rows, "k": options.k, "items": len(problems)})
    accuracy = {row["name"]: row["accuracy"] for row in rows}
    return {"items": len(problems), "accuracy": accuracy, "took_s": took_s}


def rungs_of(config: Config, inputs: Mapping[str, Path]) -> list[Rung]:
    """The rungs in the order of the table."""
    teacher, student, options = config

    def ask_teacher(problem: Problem) -> tuple[Message, ...]:
        return teacher_messages(teacher, problem.question, problem.family)

    return [
        Rung(
            "teacher",
            teacher_identity(teacher),
            None,
            lambda: open_teacher(teacher),
            ask_teacher,
            context_tokens=room_of(teacher),
        ),
        base_rung(student, options),
        *(
            checkpoint_rung(inputs[name], student, options)
            for name in (SFT_STAGE, ON_POLICY_STAGE)
            if name in inputs
        ),
        *artifact_rungs(inputs, student, options),
    ]

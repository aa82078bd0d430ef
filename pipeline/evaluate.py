"""Stage 08: teacher, base student, trained student and every GGUF on the same fresh items.

Reads `eval.jsonl`, `04-sft`, `06-gguf`; writes `answers.jsonl` (every judged answer) and
`ladder.json` (one row a rung). Each rung answers all items greedily and the first `k_items` with
`k` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.asking import ask, request_for
from pipeline.ladder import Judged, ladder_rows
from pipeline.memory import give_back_memory, keep_freed_memory
from pipeline.prompts import student_messages, teacher_messages
from pipeline.recipe import EvaluateOptions, StudentOptions, TeacherOptions
from pipeline.records import Problem, content_key
from pipeline.run import SCRATCH, Context
from pipeline.store import read_records, write_json, write_records
from pipeline.student import student_checkpoint, student_identity
from pipeline.tasks.judge import Judge
from pipeline.teacher import open_teacher, teacher_identity
from serve.engines import load_engine
from serve.engines.base import Engine
from serve.engines.child import load_in_child
from serve.messages import Message, Request, Sampling
from serve.models import file_sha256

STAGE_VERSION = 2
LIBRARIES = ("llama-cpp-python", "transformers", "torch", "reasoning-gym", "math-verify")
CONTEXT_TOKENS = 1024

Config = tuple[TeacherOptions, StudentOptions, EvaluateOptions]


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: who answers, in which prompt style, from which file."""

    name: str
    identity: str
    size_bytes: int | None
    open: Callable[[], Engine]
    messages: Callable[[Problem], tuple[Message, ...]]


def run(config: Config, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Answer, judge and tabulate. A rung that cannot answer raises EngineError with its name."""
    options = config[2]
    keep_freed_memory(one_heap=True)
    problems = list(read_records(inputs["01-problems"] / "eval.jsonl", Problem))
    judged: list[Judged] = []
    rungs = rungs_of(config, inputs)
    with Judge() as judge:
        for rung in rungs:
            judged += _examine(rung, problems, options, out, judge, context)
            give_back_memory()
    write_records(out / "answers.jsonl", judged)
    rows = ladder_rows(judged, [(r.name, r.size_bytes) for r in rungs], options.k)
    write_json(out / "ladder.json", {"rows": rows, "k": options.k, "items": len(problems)})
    return {"items": len(problems), "accuracy": {row["name"]: row["accuracy"] for row in rows}}


def rungs_of(config: Config, inputs: Mapping[str, Path]) -> list[Rung]:
    """The rungs in the order of the table."""
    teacher, student, options = config

    def ask_student(problem: Problem) -> tuple[Message, ...]:
        return student_messages(student, problem.question)

    def checkpoint(folder: Path) -> Engine:
        # A block is not refilled as its answers end, so it is larger: 450 against 400 tok/s.
        return load_engine(
            "transformers", path=folder, slots=2 * options.slots, context_tokens=CONTEXT_TOKENS
        )

    def gguf(path: Path) -> Callable[[], Engine]:
        return lambda: load_in_child(
            "llama.cpp", path=path, slots=options.slots, context_tokens=CONTEXT_TOKENS
        )

    trained = inputs["04-sft"] / "model.safetensors"
    rungs = [
        Rung(
            "teacher",
            teacher_identity(teacher),
            None,
            lambda: open_teacher(teacher),
            lambda p: teacher_messages(teacher, p.question, p.family),
        ),
        Rung(
            "base student",
            f"transformers:{student_identity(student)}",
            None,
            lambda: checkpoint(student_checkpoint(student)),
            ask_student,
        ),
        Rung(
            "SFT student",
            f"transformers:{file_sha256(trained)}",
            trained.stat().st_size,
            lambda: checkpoint(inputs["04-sft"]),
            ask_student,
        ),
    ]
    for path in sorted(inputs["06-gguf"].glob("*.gguf"), key=lambda p: -p.stat().st_size):
        name = f"GGUF {path.stem.rpartition('-')[2]}"
        identity = f"llama.cpp:{file_sha256(path)}"
        rungs.append(Rung(name, identity, path.stat().st_size, gguf(path), ask_student))
    return rungs


def _examine(
    rung: Rung,
    problems: Sequence[Problem],
    options: EvaluateOptions,
    out: Path,
    judge: Judge,
    context: Context,
) -> list[Judged]:
    """All verdicts of one rung: sample 0 is greedy, 1 to k are drawn."""
    asked: dict[str, tuple[Problem, int]] = {}
    requests: list[Request] = []
    for index, problem in enumerate(problems):
        for sample in range(1 + (options.k if index < options.k_items else 0)):
            request = request_for(
                rung.identity,
                rung.messages(problem),
                _sampling(options, context.seed, problem.key, sample),
                sample,
            )
            asked[request.key] = (problem, sample)
            requests.append(request)
    answers = ask(rung.open, requests, out / SCRATCH / "answers.jsonl", rung.name, context)
    return [
        Judged(
            rung=rung.name,
            item=problem.key,
            family=problem.family,
            sample=sample,
            completion=answers[key],
            verdict=judge.verdict(problem, answers[key]),
        )
        for key, (problem, sample) in asked.items()
    ]


def _sampling(options: EvaluateOptions, seed: int, item: str, sample: int) -> Sampling:
    if sample == 0:
        return Sampling(max_tokens=options.max_tokens)
    return Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        seed=int(content_key(seed, "08-evaluate", item, sample)[:15], 16),
    )

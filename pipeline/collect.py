"""Stage 02: the teacher answers every training problem, and every answer is judged.

Reads `train.jsonl`; writes `traces.jsonl` sorted by key, right and wrong ones alike, each with its
verdict. Acknowledged answers are in `scratch/answers.jsonl` from the moment they exist. Imported
traces are judged too and stand beside the teacher's; one that would be asked is not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from pathlib import Path
from typing import Any

from pipeline.asking import kept, request_for
from pipeline.imported import IMPORTED, Imported
from pipeline.prompts import teacher_messages
from pipeline.recipe import TeacherOptions, TracesOptions
from pipeline.records import Problem, Trace, content_key
from pipeline.run import SCRATCH, Context
from pipeline.store import read_records, write_records
from pipeline.tasks.judge import Judge
from pipeline.teacher import open_teacher, room_of, teacher_identity
from serve.messages import Request, Sampling

STAGE_VERSION = 3
LIBRARIES = ("llama-cpp-python", "reasoning-gym", "math-verify")


def run(
    config: tuple[TeacherOptions, TracesOptions],
    inputs: Mapping[str, Path],
    out: Path,
    context: Context,
) -> dict[str, Any]:
    """Collect `samples` answers a problem. Raises EngineError when the teacher cannot answer."""
    teacher, traces = config
    problems = list(read_records(inputs["01-problems"] / "train.jsonl", Problem))
    asked = {
        request.key: (problem, sample, request)
        for problem in problems
        for sample, request in enumerate(_requests(problem, teacher, traces, context.seed))
    }
    imported = Imported(inputs.get(IMPORTED), asked.keys(), inputs["01-problems"])
    log_path = out / SCRATCH / "answers.jsonl"
    imported.answer(log_path)
    answers = kept(
        lambda: open_teacher(teacher),
        [request for _, _, request in asked.values()],
        log_path,
        "teacher answers",
        context,
        room_of(teacher),
    )
    prompts = {
        family: content_key([m.model_dump() for m in teacher_messages(teacher, "", family)])
        for family in {problem.family for problem in problems}
    }
    with Judge() as judge, context.progress.bar("judging", len(asked)) as bar:

        def judged() -> Iterator[Trace]:
            for key, (problem, sample, _) in sorted(asked.items()):
                completion = answers[key]
                yield Trace(
                    key=key,
                    problem=problem,
                    sample=sample,
                    model=teacher_identity(teacher),
                    prompt_sha256=prompts[problem.family],
                    completion=completion,
                    verdict=judge.verdict(problem, completion),
                )
                bar.advance()

        everything = merge(judged(), imported.beside(judge), key=lambda t: t.key)
        return _written(out / "traces.jsonl", everything)


def _written(path: Path, traces: Iterable[Trace]) -> dict[str, Any]:
    """What was counted while they passed."""
    tokens, verdicts = 0, Counter[str]()

    def passing() -> Iterator[Trace]:
        nonlocal tokens
        for trace in traces:
            tokens += trace.completion.completion_tokens
            verdicts[trace.verdict.reason] += 1
            yield trace

    write_records(path, passing())
    return {
        "traces": verdicts.total(),
        "completion_tokens": tokens,
        "verdicts": dict(sorted(verdicts.items())),
    }


def _requests(
    problem: Problem, teacher: TeacherOptions, traces: TracesOptions, seed: int
) -> list[Request]:
    messages = teacher_messages(teacher, problem.question, problem.family)
    return [
        request_for(
            teacher_identity(teacher),
            messages,
            Sampling(
                temperature=traces.temperature,
                top_p=traces.top_p,
                max_tokens=traces.max_tokens,
                seed=int(content_key(seed, "02-traces", problem.key, sample)[:15], 16),
            ),
            sample,
        )
        for sample in range(traces.samples)
    ]

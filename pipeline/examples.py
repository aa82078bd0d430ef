"""Stage 04, before SFT: which part of which traces the student learns.

Reads `kept.jsonl` and `traces.jsonl`, and `general.jsonl` where the recipe mixes it in; writes
`examples.jsonl` sorted by key, and `steps.jsonl` (every line of every trace, what it is worth and
whether it stays) where the view measures that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from heapq import nsmallest
from pathlib import Path
from typing import Any

from pipeline.recipe import GeneralOptions, StudentOptions, SuperviseOptions, TeacherOptions
from pipeline.records import Example, General, Trace, content_key
from pipeline.run import SCRATCH, Context
from pipeline.steps import Measure, Steps, measured_steps
from pipeline.store import read_records, write_records
from pipeline.student import student_checkpoint, student_identity
from pipeline.supervise import supervised_tokens
from pipeline.teacher import open_teacher, teacher_identity
from pipeline.views import VIEWS, Material
from serve.engines import load_engine
from serve.errors import DataError

STAGE_VERSION = 2
LIBRARIES = ("transformers",)
SCORED_SLOTS = 32

Config = tuple[TeacherOptions, StudentOptions, SuperviseOptions, GeneralOptions]


def run(config: Config, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Write the examples of the recipe's view. Raises DataError when there are none."""
    _, student, options, general = config
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student_checkpoint(student), local_files_only=True)
    length = partial(supervised_tokens, tokenizer=tokenizer)
    kept = _drawn(_texts(inputs["03-curated"] / "kept.jsonl"), options, context)
    steps = _steps(kept, config, out, context) if options.view == "steps" else {}
    wrong = _wrong(kept, inputs) if options.view == "errors" else []
    material = Material(kept, student, options, length, wrong, steps)
    made = distinct(sorted(VIEWS[options.view](material), key=lambda e: e.key))
    reasoned = _within(made, options, length, context.seed)
    beside = _general(inputs, general, len(reasoned), context) if general.wanted else []
    examples = sorted([*reasoned, *beside], key=lambda e: e.key)
    if not reasoned:
        raise DataError(f"view {options.view} made no example of {len(kept)} kept traces")
    write_records(out / "examples.jsonl", examples)
    return {
        "view": options.view,
        "traces": len(kept),
        "examples": len(examples),
        "supervised_tokens": sum(map(length, examples)),
        # What the view learns of a trace that it can use, however many of its examples were taken.
        "tokens_per_trace": round(sum(map(length, made)) / len({e.trace for e in made}), 1),
        **_general_counts(len(beside), len(reasoned), general),
        **_steps_counts(steps, options),
    }


def _texts(path: Path) -> Iterator[Trace]:
    """Traces without their token ids: most of their memory, and no view reads them."""
    for trace in read_records(path, Trace):
        said = trace.completion.model_copy(update={"ids": ()})
        yield trace.model_copy(update={"completion": said})


def _drawn(kept: Iterable[Trace], options: SuperviseOptions, context: Context) -> list[Trace]:
    """`traces` of them, the same whatever the view; a larger draw holds every smaller one."""
    if options.traces is not None:
        kept = nsmallest(options.traces, kept, key=lambda t: _rank(t.key, context.seed))
    return sorted(kept, key=lambda t: t.key)


def _rank(trace: str, seed: int) -> str:
    """Where a trace stands in the order in which all views take them."""
    return content_key(seed, "04-examples", trace)


def distinct(made: Iterable[Example]) -> list[Example]:
    """The first of those that say the same to the same prompt, as the answers of two traces of one
    problem do."""
    found: dict[str, Example] = {}
    for example in made:
        found.setdefault(content_key(list(example.prompt), example.completion), example)
    return list(found.values())


def _wrong(kept: Sequence[Trace], inputs: Mapping[str, Path]) -> list[Trace]:
    """Finished attempts at problems of kept traces that were judged wrong."""
    problems = {t.problem.key for t in kept}
    return [
        t
        for t in _texts(inputs["02-traces"] / "traces.jsonl")
        if t.verdict.reason == "wrong" and t.problem.key in problems
    ]


def _general(
    inputs: Mapping[str, Path], options: GeneralOptions, reasoned: int, context: Context
) -> list[Example]:
    """General data for the wanted share of all examples, or as much of it as there is."""
    rows = list(read_records(inputs["02-general"] / "general.jsonl", General))
    rows.sort(key=lambda row: content_key(context.seed, "general", row.key))
    count = _general_wanted(reasoned, options)
    system = {"role": "system", "content": options.system}
    return [
        Example(
            key=row.key,
            family="general",
            prompt=(system, {"role": "user", "content": row.prompt}),
            completion=row.response,
        )
        for row in rows[:count]
    ]


def _general_wanted(reasoned: int, options: GeneralOptions) -> int:
    return round(reasoned * options.share / (1 - options.share))


def _general_counts(beside: int, reasoned: int, options: GeneralOptions) -> dict[str, int]:
    if not options.wanted:
        return {}
    wanted = _general_wanted(reasoned, options)
    return {"general": beside, **({"general_wanted": wanted} if wanted > beside else {})}


def _within(
    examples: list[Example], options: SuperviseOptions, length: Any, seed: int
) -> list[Example]:
    """Examples of the traces in their order, until the next one would pass `tokens`."""
    if options.tokens is None:
        return examples
    chosen: list[Example] = []
    spent = 0
    for example in sorted(examples, key=lambda e: (_rank(e.trace, seed), e.key)):
        spent += length(example)
        if spent > options.tokens:
            break
        chosen.append(example)
    return sorted(chosen, key=lambda e: e.key)


def _steps(kept: Sequence[Trace], config: Config, out: Path, context: Context) -> dict[str, Steps]:
    teacher, student, options, _ = config
    if options.step_scorer == "teacher":
        open_engine, identity = partial(open_teacher, teacher), teacher_identity(teacher)
    else:
        open_engine = partial(
            load_engine,
            "transformers",
            path=student_checkpoint(student),
            slots=SCORED_SLOTS,
            context_tokens=teacher.context_tokens,
        )
        identity = student_identity(student)
    measure = Measure(open_engine, identity, student, options.step_drop_nats)
    found = measured_steps(kept, measure, out / SCRATCH / "steps.jsonl", context)
    rows = [found[t.key].model_copy(update={"key": t.key}) for t in kept]
    write_records(out / "steps.jsonl", rows)
    return found


def _steps_counts(steps: Mapping[str, Steps], options: SuperviseOptions) -> dict[str, Any]:
    if not steps:
        return {}
    lines = [kept for found in steps.values() for kept in found.kept]
    return {
        "lines": len(lines),
        "lines_cut": lines.count(False),
        "step_drop_nats": options.step_drop_nats,
        "step_scorer": options.step_scorer,
    }

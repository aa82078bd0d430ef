"""Stage 09: every artifact proven and judged beside the unquantized student; one is chosen.

Reads `01-problems`, the trained student, `06-gguf`, `07-onnx`, `08-evaluate`, and the cases that
people kept in the run's `regressions.jsonl`; writes `gate.json` (a row an artifact, the choice, and
what practice gained) and `answers.jsonl` (to the items that only what was undecided was asked). A
refused, failed or undecided artifact is a row like any other; only broken input raises.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any

from pipeline.examine import (
    SFT_STAGE,
    ArtifactRung,
    artifact_rungs,
    checkpoint_rung,
    examine,
    final_checkpoint,
    reference_name,
)
from pipeline.held_out import held_out_traces
from pipeline.ladder import Judged
from pipeline.memory import give_back_memory, keep_freed_memory
from pipeline.practice_gain import confidence_per_look, is_open, practice_gain
from pipeline.recipe import EvaluateOptions, GateOptions, StudentOptions
from pipeline.records import Problem
from pipeline.run import SCRATCH, Context
from pipeline.store import read_records, write_json, write_records
from pipeline.tasks.judge import Judge
from quant.gate import ALPHA, GateVerdict, on_regression_cases, paired_verdict
from quant.parity import conversations
from quant.proof import Proof, Reference, prove, reference_of
from quant.select import Candidate, choose
from quant.stats import alpha_per_look
from serve.catalogue import REGRESSION_CASES
from serve.engines import load_engine

STAGE_VERSION = 8
LIBRARIES = (
    "llama-cpp-python",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "onnxruntime-genai-cuda",
    "gguf",
    "transformers",
    "torch",
    "reasoning-gym",
    "math-verify",
)
FORMATS = ("GGUF", "ONNX")
# Of asking more: every further look costs all of them some of their power.
MOST_STEPS = 4
TEACHER, EXACT = "teacher", ("GGUF F16", "GGUF F32", "GGUF BF16", "ONNX fp32")

Config = tuple[StudentOptions, EvaluateOptions, GateOptions]


def run(config: Config, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Prove, judge, choose."""
    student, evaluation, options = config
    keep_freed_memory(one_heap=True)
    rungs = artifact_rungs(inputs, student, evaluation)
    reference = out / SCRATCH / "reference"
    shutil.rmtree(reference, ignore_errors=True)  # half a gigabyte that a killed proof left
    reference.mkdir(parents=True)
    try:
        proofs = _proofs(config, rungs, inputs, reference, context)
    finally:
        shutil.rmtree(reference, ignore_errors=True)
    sound = [rung for rung in rungs if proofs[rung.name].fault is None]
    verdicts, more, gain = _verdicts(config, sound, inputs, out, context)
    if REGRESSION_CASES in inputs:
        verdicts = _on_regression_cases(config, sound, inputs, out, context, verdicts)
    rows = [
        {
            "name": rung.name,
            "file": rung.path.name,
            "size_bytes": rung.size_bytes,
            "proof": proofs[rung.name].model_dump(mode="json"),
            "verdict": verdicts[rung.name].model_dump(mode="json") if rung in sound else None,
        }
        for rung in rungs
    ]
    candidates = [_candidate(r, proofs, verdicts) for r in sound]
    write_records(out / "answers.jsonl", more)
    write_json(
        out / "gate.json",
        {
            "rows": rows,
            "margin_points": options.margin_points,
            "reference": reference_name(inputs),
            "practice": gain,
            "chosen": choose(candidates, options.choose).model_dump(),
            "chosen_by_format": {
                kind: choose(
                    [c for c in candidates if c.name.startswith(kind)], options.choose
                ).model_dump()
                for kind in FORMATS
            },
        },
    )
    outcomes = {r.name: verdicts[r.name].outcome if r in sound else "refused" for r in rungs}
    return {"outcomes": outcomes, "chosen": choose(candidates, options.choose).name}


def _proofs(
    config: Config,
    rungs: Sequence[ArtifactRung],
    inputs: Mapping[str, Path],
    scratch: Path,
    context: Context,
) -> dict[str, Proof]:
    with context.progress.bar("proving", 1 + len(rungs)) as bar:
        reference = reference_for(config, inputs, scratch)
        give_back_memory()
        bar.advance(1)
        proofs = {}
        for rung in rungs:
            proofs[rung.name] = prove(rung.path, rung.open_alone, reference, rung.name in EXACT)
            context.log.info("%s: %s", rung.name, proofs[rung.name].fault or "proven")
            bar.advance(1)
    return proofs


def reference_for(config: Config, inputs: Mapping[str, Path], scratch: Path) -> Reference:
    """The student in float32: its own rounding must not count as the artifacts'."""
    from transformers import AutoTokenizer

    student, _, options = config
    problems = {p.key: p for p in read_records(inputs["01-problems"] / "eval.jsonl", Problem)}
    answers = [
        a
        for a in read_records(inputs["08-evaluate"] / "answers.jsonl", Judged)
        if a.rung == TEACHER and a.sample == 0
    ]
    checkpoint = final_checkpoint(inputs)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    held_out = held_out_traces(answers, problems, student, tokenizer, options.divergence_tokens)
    asked = conversations(
        [p.question for p in problems.values()], student.system, options.conversations
    )
    with closing(load_engine("transformers", path=checkpoint, dtype="float32")) as engine:
        return reference_of(engine, asked, held_out, scratch)


def _verdicts(
    config: Config,
    rungs: Sequence[ArtifactRung],
    inputs: Mapping[str, Path],
    out: Path,
    context: Context,
) -> tuple[dict[str, GateVerdict], list[Judged], dict[str, Any] | None]:
    """A verdict on the evaluation's answers, and on as many more while those leave it open; the
    same of what practice gained."""
    student, evaluation, options = config
    answers = [
        a for a in read_records(inputs["08-evaluate"] / "answers.jsonl", Judged) if a.sample == 0
    ]
    reference = reference_name(inputs)
    first, size = len(answers), sum(a.rung == reference for a in answers)
    problems = list(read_records(inputs["01-problems"] / "gate.jsonl", Problem))
    each = max(size, -(-len(problems) // MOST_STEPS))
    steps = [problems[at : at + each] for at in range(0, len(problems), each)]
    sizes = list(accumulate(map(len, steps), initial=size))
    alpha = alpha_per_look(sizes, ALPHA)

    def verdict(rung: ArtifactRung, last: bool) -> GateVerdict:
        return paired_verdict(
            rung.name,
            _passed(answers, reference),
            _passed(answers, rung.name),
            {a.item: a.family for a in answers if a.rung == reference},
            options.margin_points / 100,
            alpha,
            last,
        )

    verdicts = {rung.name: verdict(rung, last=not steps) for rung in rungs}
    confidence = confidence_per_look(sizes)
    gain = practice_gain(answers, confidence)
    trained, sft = (
        checkpoint_rung(folder, student, evaluation)
        for folder in (final_checkpoint(inputs), inputs[SFT_STAGE])
    )
    greedy = evaluation.greedy
    with Judge() as judge:
        for look, step in enumerate(steps, start=1):
            still = [r for r in rungs if verdicts[r.name].outcome == "inconclusive"]
            untold = [sft] if is_open(gain) else []
            if not (still or untold):
                break
            for rung in (trained, *untold, *still):
                answers += examine(rung, step, greedy, out, judge, context)
                give_back_memory()
            verdicts |= {rung.name: verdict(rung, last=look == len(steps)) for rung in still}
            gain = practice_gain(answers, confidence)
    return verdicts, answers[first:], gain


def _on_regression_cases(
    config: Config,
    rungs: Sequence[ArtifactRung],
    inputs: Mapping[str, Path],
    out: Path,
    context: Context,
    verdicts: Mapping[str, GateVerdict],
) -> dict[str, GateVerdict]:
    """Kept cases are chosen, not drawn: they may refuse a file, and say nothing of its accuracy."""
    student, evaluation, _ = config
    cases = list({p.key: p for p in read_records(inputs[REGRESSION_CASES], Problem)}.values())
    greedy = evaluation.greedy
    answers: list[Judged] = []
    with Judge() as judge:
        for rung in (checkpoint_rung(final_checkpoint(inputs), student, evaluation), *rungs):
            answers += examine(rung, cases, greedy, out, judge, context)
            give_back_memory()
    right = _passed(answers, reference_name(inputs))
    return {
        rung.name: on_regression_cases(verdicts[rung.name], right, _passed(answers, rung.name))
        for rung in rungs
    }


def _passed(answers: Sequence[Judged], rung: str) -> dict[str, bool | None]:
    return {a.item: a.verdict.passed for a in answers if a.rung == rung}


def _candidate(
    rung: ArtifactRung, proofs: Mapping[str, Proof], verdicts: Mapping[str, GateVerdict]
) -> Candidate:
    proof, verdict = proofs[rung.name], verdicts[rung.name]
    assert proof.divergence is not None
    assert proof.speed is not None
    return Candidate(
        name=rung.name,
        file=rung.path.name,
        size_bytes=rung.size_bytes or 0,
        tokens_per_s=proof.speed.tokens_per_s,
        kl_nats=proof.divergence["all"].mean_nats,
        outcome=verdict.outcome,
    )

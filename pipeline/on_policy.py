"""Stage 05: the student practises and the teacher grades every token.

Reads `practice.jsonl` and `04-sft`; writes a checkpoint folder, `blocks.jsonl` (a row a block, of
`exact` an update), `watch.json` (looks at held-out problems), `attempts.jsonl` (every attempt with
its verdict; not of `exact`, which judges none), and what quantized files are fitted on:
`own_answers.jsonl` (attempts that ended, right and wrong, if they are kept) and `examples.jsonl`
(the traces it was trained on). A killed run goes on and ends with the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.attempts import Attempt, in_practice_order, own_answers
from pipeline.calibration import OWN_ANSWERS
from pipeline.checkpoints import LAST_GOOD, forget_others, kept_beside
from pipeline.memory import keep_freed_memory
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.pair_method import choose_method
from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions, TeacherOptions
from pipeline.records import Example, Problem
from pipeline.run import SCRATCH, Context
from pipeline.store import read_records, write_file, write_json, write_records
from pipeline.supervise import rendered_answer
from pipeline.tasks.judge import Judge
from serve.errors import DataError, TrainingDiverged
from serve.models import file_sha256, resolve_model

STAGE_VERSION = 8
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "llama-cpp-python",
    "reasoning-gym",
    "math-verify",
)
# What a teacher's words do not depend on: a raised budget must not pay for them again.
UNCHANGING = {"token_budget", "slots", "base_url", "api_key_env", "license"}
Config = tuple[TeacherOptions, StudentOptions, OnPolicyOptions]


def run(config: Config, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Practise. Raises TrainingDiverged, EngineError (the teacher left), DataError."""
    teacher, _, options = config
    keep_freed_memory()
    problems = list(read_records(inputs["01-problems"] / "practice.jsonl", Problem))
    ordered = in_practice_order(problems, context.seed)
    held = options.watch_problems if options.watch_blocks else 0
    held_out, practice = ordered[:held], ordered[held:]
    if not practice:
        raise DataError(
            f"{len(problems)} practice problems, {held} of them held out",
            hint="raise problems.practice_per_family",
        )
    checkpoint = inputs["04-sft"]
    method = choose_method(teacher, options, checkpoint).method
    chosen = options.resolved(method)
    _forget_others(out / SCRATCH, config, inputs, context.seed)
    shutil.copyfile(checkpoint / "examples.jsonl", out / "examples.jsonl")
    if method == "exact":
        counts = _exact(config, chosen, practice, held_out, checkpoint, out, context)
    else:
        counts = _graded(config, chosen, practice, held_out, checkpoint, out, context)
    for finished in (SCRATCH, LAST_GOOD):
        shutil.rmtree(out / finished, ignore_errors=True)
    return {"method": method} | counts


def _forget_others(scratch: Path, config: Config, inputs: Mapping[str, Path], seed: int) -> None:
    """Forget what a practice of other settings, or of another student, left unfinished."""
    teacher, student, options = config
    forget_others(
        scratch,
        scratch / "of.txt",
        STAGE_VERSION,
        seed,
        teacher.model_dump(mode="json", exclude=_unchanging(teacher)),
        student.model_dump(mode="json"),
        options.model_dump(mode="json", exclude={"checkpoint_blocks"}),
        file_sha256(inputs["04-sft"] / "model.safetensors"),
        file_sha256(inputs["01-problems"] / "practice.jsonl"),
    )


def _unchanging(teacher: TeacherOptions) -> set[str]:
    """llama.cpp grades as many answers together as it has slots, which shows in rounding."""
    return UNCHANGING - {"slots"} if teacher.engine == "llama.cpp" else UNCHANGING


def _exact(
    config: Config,
    options: OnPolicyOptions,
    practice: Sequence[Problem],
    held_out: Sequence[Problem],
    checkpoint: Path,
    out: Path,
    context: Context,
) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from pipeline.exact import refine_exact

    teacher, student, _ = config
    for name in ("attempts.jsonl", OWN_ANSWERS):  # of a graded method that was here before
        (out / name).unlink(missing_ok=True)
    folder = resolve_model(teacher.model, teacher.sha256)
    examples = _replayable(checkpoint, options)
    rows = refine_exact(
        checkpoint, folder, practice, student, options, out, context, held_out, examples
    )
    _write_rows(out / "blocks.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    turns = [[m.model_dump() for m in student_messages(student, p.question)] for p in practice]
    prompts = [tokenizer.apply_chat_template(t, add_generation_prompt=True) for t in turns]
    # Both models read every answer after its prompt.
    read = sum(row["learnt_tokens"] for row in rows) + round(
        len(rows) * options.batch_lessons * mean(map(_length, prompts))
    )
    return {
        "updates": len(rows),
        "skipped_updates": rows[-1]["skipped_updates"],
        "attempt_tokens": sum(row["attempt_tokens"] for row in rows),
        "student_tokens": read,
        "teacher_tokens": read,
    }


def _length(encoded: Any) -> int:
    """transformers gives ids, or a mapping that holds them."""
    return len(encoded["input_ids"] if isinstance(encoded, Mapping) else encoded)


def _graded(
    config: Config,
    options: OnPolicyOptions,
    practice: Sequence[Problem],
    held_out: Sequence[Problem],
    checkpoint: Path,
    out: Path,
    context: Context,
) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from pipeline.forecast_memory import PRACTICE_KEPT_SHARE, PROMPT_TOKENS
    from pipeline.grading import Grading
    from pipeline.refiner import Refiner
    from pipeline.sampler import Sampler
    from pipeline.trainable import layers_again

    teacher, student, _ = config
    scratch = out / SCRATCH
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    examples = _replayable(checkpoint, options)
    replay = replayed_lessons(examples, tokenizer)
    longest = max(PROMPT_TOKENS + options.max_tokens, *(len(lesson.ids) for lesson in replay), 1)
    tokens = options.batch_lessons * longest
    said = context.training.gradient_checkpointing
    again = layers_again(said, checkpoint, tokens, PRACTICE_KEPT_SHARE)
    handed, questions = scratch / "handed", [p.question for p in (*practice, *held_out)]
    sampler = Sampler(
        checkpoint, student, options.max_tokens, again, context.training, handed, questions
    )
    asked = Grading(teacher, options, practice, scratch)
    with closing(sampler), Judge() as judge, asked as grading:
        refiner = Refiner(
            sampler, grading, judge, teacher, student, options, replay, held_out, scratch, context
        )
        try:
            rows = refiner.run(practice)
        except TrainingDiverged as error:
            sampler.save(out / LAST_GOOD)
            raise kept_beside(error, out / LAST_GOOD) from error
        graded_tokens = grading.tokens
        sampler.save(out)
    write_file(out / "attempts.jsonl", (scratch / "attempts.jsonl").read_bytes())
    attempts = read_records(out / "attempts.jsonl", Attempt)
    write_records(out / OWN_ANSWERS, own_answers(attempts, student))
    _write_rows(out / "blocks.jsonl", rows)
    write_json(out / "watch.json", refiner.watching.looks)
    return {
        "blocks": len(rows),
        "attempts": sum(row["attempts"] for row in rows),
        "attempt_tokens": sum(row["attempt_tokens"] for row in rows),
        "unspelt": sum(row["unspelt"] for row in rows),
        "lessons": sum(row["lessons"] for row in rows),
        "updates": sum(row["updates"] for row in rows),
        "skipped_updates": rows[-1]["skipped_updates"],
        "student_tokens": refiner.trained_tokens,
        "teacher_tokens": graded_tokens,
        "took_s": {phase: round(s, 1) for phase, s in sorted(refiner.took_s.items())},
    }


def _replayable(checkpoint: Path, options: OnPolicyOptions) -> list[Example]:
    """What SFT learnt from, if any of it is to be replayed."""
    return list(read_records(checkpoint / "examples.jsonl", Example)) if options.replay else []


def replayed_lessons(examples: Sequence[Example], tokenizer: Any) -> list[Any]:
    """SFT's examples as lessons: loss on the completion alone, as there."""
    from pipeline.lesson import told

    ordered = sorted(examples, key=lambda e: e.key)
    return [told(*rendered_answer(example, tokenizer)) for example in ordered]


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_file(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))

"""Stage 04: the student learns its examples (TRL `SFTTrainer`, loss on the completion).

Reads `examples.jsonl` and the student checkpoint; writes a checkpoint folder, `losses.jsonl` and
`examples.jsonl`. Examples that do not fit are dropped and counted, never cut. A killed run resumes
from its last complete checkpoint and ends with the same bytes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.checkpoints import forget_others, newest_complete, steps_done
from pipeline.memory import keep_freed_memory
from pipeline.recipe import SftOptions, StudentOptions
from pipeline.records import Example
from pipeline.run import SCRATCH, Context
from pipeline.spread import SftJob, train_spread
from pipeline.store import read_records, write_file, write_records
from pipeline.student import student_checkpoint
from pipeline.supervise import rendered_ids, supervised_tokens
from pipeline.training_options import Packed
from serve.errors import DataError
from serve.models import artifact_sha256, file_sha256

STAGE_VERSION = 3
CHECKPOINTS = "checkpoints"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")

Config = tuple[StudentOptions, SftOptions, *tuple[Packed, ...]]


def run(
    config: Config,
    inputs: Mapping[str, Path],
    out: Path,
    context: Context,
) -> dict[str, Any]:
    """Train and save the student.

    Raises TrainingDiverged at the first loss that is not a number.
    """
    student, options = config[:2]
    keep_freed_memory()
    from transformers import AutoTokenizer

    base = student_checkpoint(student)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    examples = list(read_records(inputs["04-examples"] / "examples.jsonl", Example))
    fitting, too_long = split_by_length(examples, tokenizer, options.max_tokens)
    if not fitting:
        raise DataError(
            f"no example to train on: {len(examples)} made, "
            f"{too_long} over {options.max_tokens} tokens"
        )
    write_records(out / "examples.jsonl", fitting)
    _forget_others(config, base, out, context)
    losses = _train(base, tokenizer, fitting, options, out, context)
    write_file(out / "losses.jsonl", "".join(json.dumps(row) + "\n" for row in losses))
    shutil.rmtree(out / SCRATCH, ignore_errors=True)
    return {
        "examples": len(fitting),
        "dropped_too_long": too_long,
        "supervised_tokens": sum(supervised_tokens(e, tokenizer) for e in fitting) * options.epochs,
        "trained_tokens": sum(len(rendered_ids(e, tokenizer)) for e in fitting) * options.epochs,
        "steps": len(losses),
        "first_loss_nats": round(losses[0]["loss_nats"], 4),
        "last_loss_nats": round(losses[-1]["loss_nats"], 4),
    }


def _forget_others(config: Config, base: Path, out: Path, context: Context) -> None:
    """Checkpoints of other settings, examples, or processes that shared the model otherwise."""
    student, options, *packed = config
    forget_others(
        out / SCRATCH / CHECKPOINTS,
        out / SCRATCH / "of.txt",
        STAGE_VERSION,
        context.seed,
        context.training.shape,
        student.model_dump(mode="json"),
        "" if student.sha256 else artifact_sha256(base),
        options.model_dump(mode="json", exclude={"checkpoint_steps"}),
        [part.model_dump(mode="json") for part in packed],
        file_sha256(out / "examples.jsonl"),
    )


def split_by_length(
    examples: Sequence[Example], tokenizer: Any, limit: int
) -> tuple[list[Example], int]:
    """Examples of at most `limit` tokens, prompt included, and how many are longer."""
    fitting = [e for e in examples if len(rendered_ids(e, tokenizer)) <= limit]
    return fitting, len(examples) - len(fitting)


def _train(
    base: Path,
    tokenizer: Any,
    examples: Sequence[Example],
    options: SftOptions,
    out: Path,
    context: Context,
) -> list[dict[str, float]]:
    """Run the trainer to its end, from its last complete checkpoint if there is one."""
    scratch = out / SCRATCH / CHECKPOINTS
    resume = newest_complete(scratch)
    if resume is not None:
        context.log.info("resuming from %s", resume.name)
    if context.training.spread:
        return _train_spread(base, tokenizer, examples, options, out, context, resume)
    from pipeline.sft_trainer import build_trainer

    trainer = build_trainer(
        base, tokenizer, examples, options, scratch, context.seed, context.training
    )
    steps = trainer.planned_steps()
    with context.progress.bar("training", steps) as bar:
        trainer.watch(lambda step, loss: bar.advance(1, f"loss {loss:.3f}"))
        bar.known(steps_done(resume))
        history = trainer.run(resume)
    trainer.save(out)
    return history


def _train_spread(
    base: Path,
    tokenizer: Any,
    examples: Sequence[Example],
    options: SftOptions,
    out: Path,
    context: Context,
    resume: Path | None,
) -> list[dict[str, float]]:
    """The same in processes of its own, which leave the student in `out`."""
    plan = context.training
    at_a_time, readings = plan.steps_of(options.batch_examples)
    rows = len(examples)
    if plan.packing:
        rows = math.ceil(
            sum(len(rendered_ids(e, tokenizer)) for e in examples) / options.max_tokens
        )
    steps = math.ceil(rows / (plan.processes * at_a_time * readings)) * options.epochs
    job = SftJob(
        base=base.resolve(),
        scratch=(out / SCRATCH / CHECKPOINTS).resolve(),
        out=out.resolve(),
        seed=context.seed,
        training=plan,
        resume=resume and resume.resolve(),
        examples=(out / "examples.jsonl").resolve(),
        options=options,
    )
    with context.progress.bar(f"training, {plan.processes} processes", steps) as bar:
        bar.known(steps_done(resume))
        return train_spread(job, lambda step, loss: bar.advance(1, f"loss {loss:.3f}"))

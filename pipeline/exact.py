"""Method `exact` of stage 05: the student's own attempts, the teacher's whole distribution.

For a teacher with the student's vocabulary, as a checkpoint: every token of an attempt is moved
towards what the teacher would write there (TRL `DistillationTrainer`, arXiv 2306.13649). Writes a
checkpoint folder; a killed run resumes from its last complete checkpoint and ends with the same
weights. Attempts are not judged: right and wrong ones are learnt from alike. Held-out problems are
looked at between blocks (`pipeline/exact_watch.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import (
    LAST_GOOD,
    forget_others,
    kept_beside,
    newest_complete,
    steps_done,
)
from pipeline.memory import keep_freed_memory
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import StudentOptions
from pipeline.records import Example, Problem
from pipeline.run import SCRATCH, Context
from pipeline.spread import ExactJob, train_spread
from pipeline.store import write_json, write_records
from pipeline.tasks.judge import Judge
from pipeline.token_rows import compare_vocabularies, cut_padding, give_back_padding, shared_rows
from pipeline.training_options import TrainingOptions
from serve.errors import DataError, TrainingDiverged

# What processes of their own practise on and are watched by, beside their checkpoints.
PROBLEMS, HELD_OUT, EXAMPLES = "problems.jsonl", "held-out.jsonl", "examples.jsonl"
LOOKS = "watch"

if TYPE_CHECKING:
    from pipeline.exact_attempts import ExactSampler
    from pipeline.exact_trainer import ExactTrainer, OnStep


def refine_exact(
    checkpoint: Path,
    teacher_checkpoint: Path,
    problems: Sequence[Problem],
    student: StudentOptions,
    options: OnPolicyOptions,
    out: Path,
    context: Context,
    held_out: Sequence[Problem] = (),
    examples: Sequence[Example] = (),
) -> list[dict[str, Any]]:
    """Train the student on its own attempts at `problems`, `on_policy.replay` of SFT's `examples`
    between those of a block, and save it (bfloat16, tokenizer beside it) into `out`, with
    `watch.json` of the looks at `held_out`. One row a step (`ExactTrainer.rows`).

    Raises DataError for a teacher of another vocabulary, TrainingDiverged at the third update in a
    row that is broken; the student before them is in `last-good` then.
    """
    if not problems:
        raise DataError("no problem to practise on")
    keep_freed_memory()
    from pipeline.exact_attempts import planned_steps, with_traces

    options = with_traces(options, examples)
    scratch = out / SCRATCH / "checkpoints"
    forget_others(scratch, scratch.with_suffix(".of"), context.training.shape)
    resume = newest_complete(scratch)
    done = steps_done(resume)
    if resume is not None:
        context.log.info("resuming from %s", resume.name)
    if context.training.spread:
        write_records(scratch / PROBLEMS, problems)
        write_records(scratch / HELD_OUT, held_out)
        write_records(scratch / EXAMPLES, examples)
        job = ExactJob(
            base=checkpoint.resolve(),
            teacher=teacher_checkpoint.resolve(),
            scratch=scratch.resolve(),
            out=out.resolve(),
            problems=(scratch / PROBLEMS).resolve(),
            held_out=(scratch / HELD_OUT).resolve(),
            examples=(scratch / EXAMPLES).resolve(),
            student=student,
            options=options,
            seed=context.seed,
            training=context.training,
            resume=resume and resume.resolve(),
        )
        rows = _refine_spread(job, done, context)
        return _finished(rows, scratch, out)
    with context.progress.bar("practice", planned_steps(options)) as bar:
        exact = Exact(
            checkpoint,
            teacher_checkpoint,
            problems,
            student,
            options,
            scratch,
            context.seed,
            lambda step, loss: bar.advance(1, f"divergence {loss:.3f}"),
            context.training,
            held_out,
            examples,
        )
        bar.advance(done)
        rows = exact.practise(resume, out)
    return _finished(rows, scratch, out)


def _finished(rows: list[dict[str, Any]], scratch: Path, out: Path) -> list[dict[str, Any]]:
    from pipeline.watching import looks_in

    write_json(out / "watch.json", looks_in(scratch / LOOKS))
    shutil.rmtree(scratch, ignore_errors=True)
    return rows


def _refine_spread(job: ExactJob, done: int, context: Context) -> list[dict[str, Any]]:
    """The same in processes of its own, `done` steps of it behind them."""
    from pipeline.exact_attempts import planned_steps

    with context.progress.bar("practice", planned_steps(job.options)) as bar:
        bar.advance(done)
        return train_spread(job, lambda step, loss: bar.advance(1, f"divergence {loss:.3f}"))


class Exact:
    """Both models loaded, their heads of one height, and the trainer over them."""

    def __init__(
        self,
        checkpoint: Path,
        teacher_checkpoint: Path,
        problems: Sequence[Problem],
        student: StudentOptions,
        options: OnPolicyOptions,
        scratch: Path,
        seed: int,
        on_step: OnStep,
        training: TrainingOptions = TrainingOptions(),  # noqa: B008 frozen
        held_out: Sequence[Problem] = (),
        examples: Sequence[Example] = (),
    ) -> None:
        import torch
        from transformers import AutoTokenizer

        from pipeline.exact_attempts import Practice, replayed, with_traces
        from pipeline.exact_trainer import build_trainer, exact_config
        from pipeline.exact_watch import ExactWatch, WatchedCopy, untimed
        from pipeline.forecast_memory import PRACTICE_KEPT_SHARE, PROMPT_TOKENS
        from pipeline.processors import one_gpu
        from pipeline.trainable import layers_again, trainable, untouched
        from pipeline.training_steps import Housekeeping
        from pipeline.watching import Watching

        tokenizer, other = (
            AutoTokenizer.from_pretrained(folder, local_files_only=True)
            for folder in (checkpoint, teacher_checkpoint)
        )
        tokens = compare_vocabularies(tokenizer, other)
        options = with_traces(options, examples).resolved("exact")
        torch.manual_seed(seed)
        library = training.spread or training.device_examples is not None
        model = untouched(checkpoint) if library else trainable(checkpoint)
        teacher, copied = frozen(teacher_checkpoint, packed=not library), frozen(checkpoint)
        self._checkpoint, self._rows = checkpoint, shared_rows(model, teacher, tokens)
        self._cut = cut_padding(model, self._rows)
        cut_padding(teacher, self._rows)
        cut_padding(copied, self._rows)
        at_a_time, _ = training.steps_of(options.batch_lessons)
        tokens = at_a_time * (PROMPT_TOKENS + options.max_tokens)
        said = training.gradient_checkpointing
        again = layers_again(said, checkpoint, tokens, PRACTICE_KEPT_SHARE)
        # After all models, which DeepSpeed would else share out; before any moves: it says which
        # GPU is this process's.
        config = one_gpu(exact_config(options, scratch, seed, training, again))
        sampler = _sampler(copied.to(config.device), tokenizer, checkpoint.name, options)
        self._judge, self._copy = Judge(), WatchedCopy(sampler, student, checkpoint)
        looks = scratch / LOOKS
        watching = Watching(self._copy, self._judge, student, options, held_out, looks, untimed)
        self.trainer: ExactTrainer = build_trainer(
            model,
            teacher,
            sampler,
            tokenizer,
            Practice(problems, student, options, seed, replayed(examples, tokenizer)),
            config,
            on_step,
            library,
        )
        self._watch = ExactWatch(self.trainer, watching, self._copy, options)
        self.trainer.add_callback(self._watch)
        self.trainer.add_callback(Housekeeping())

    def practise(self, resume: Path | None, out: Path) -> list[dict[str, Any]]:
        """Train to the end, and save into `out`. Raises TrainingDiverged."""
        with self._judge:
            try:
                rows = self.run(resume)
            except TrainingDiverged as error:
                if self.trainer.skips:  # else the weights are broken, too
                    self.save(out / LAST_GOOD)
                    raise kept_beside(error, out / LAST_GOOD) from error
                raise
        self.save(out)
        return rows

    def run(self, resume: Path | None) -> list[dict[str, Any]]:
        """Train to the end, from a checkpoint of the same training if one is given."""
        from pipeline.exact_trainer import GUARD

        if resume is not None:
            self.trainer.guard.restore(json.loads((resume / GUARD).read_text(encoding="utf-8")))
            self._watch.restore(resume)
        self.trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return self.trainer.rows()

    def save(self, folder: Path) -> None:
        """A plain checkpoint in bfloat16 with as many rows as it came with: the student as it is,
        or the better one that the watch went back to."""
        import torch
        from transformers import AutoModelForCausalLM

        from pipeline.trainable import trained_model

        def cut(plain: Any) -> None:
            cut_padding(plain, self._rows)

        if self._copy.taken is None:
            model = trained_model(self.trainer, self._checkpoint, cut)
        elif self.trainer.accelerator.is_main_process:
            model = AutoModelForCausalLM.from_pretrained(self._copy.taken, local_files_only=True)
            cut(model)
        else:
            model = None
        if model is None:
            return
        give_back_padding(model, self._cut)
        model.to(torch.bfloat16).save_pretrained(folder)
        self.trainer.processing_class.save_pretrained(folder)


def frozen(checkpoint: Path, packed: bool = True) -> Any:
    """A model to read with, in the dtype that is fast here; `packed` is the attention of a student
    that one process trains on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.packing import PACKED, packs
    from serve.hardware import has_cuda, has_fast_bfloat16

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.bfloat16 if has_fast_bfloat16() else torch.float32,
        local_files_only=True,
        attn_implementation=None if has_cuda() or not packed else "eager",
    )
    if packed and not has_cuda() and packs(model):
        model.set_attn_implementation(PACKED)
    return model.eval().requires_grad_(False)


def _sampler(copied: Any, tokenizer: Any, name: str, options: OnPolicyOptions) -> ExactSampler:
    from pipeline.exact_attempts import ExactSampler
    from serve.engines.transformers import TransformersEngine

    context_tokens = getattr(copied.config.get_text_config(), "max_position_embeddings", 2**31)
    engine = TransformersEngine(copied, tokenizer, name, options.batch_lessons, context_tokens)
    return ExactSampler(engine, options)

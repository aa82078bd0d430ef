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
from typing import TYPE_CHECKING, Any, NamedTuple

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
from pipeline.store import read_records, write_json, write_records
from pipeline.tasks.judge import Judge
from pipeline.token_rows import compare_vocabularies, cut_padding, give_back_padding, shared_rows
from pipeline.training_options import TrainingOptions
from serve.errors import DataError, TrainingDiverged

# Looks at held-out problems, beside the checkpoints.
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
    row that is broken; the student before them is in `last-good` then (not with ZeRO-3).
    """
    if not problems:
        raise DataError("no problem to practise on")
    keep_freed_memory()
    from pipeline.exact_attempts import planned_steps
    from pipeline.watching import looks_in

    scratch = out / SCRATCH / "checkpoints"
    forget_others(scratch, scratch.with_suffix(".of"), context.training.shape)
    resume = newest_complete(scratch)
    if resume is not None:
        context.log.info("resuming from %s", resume.name)
    materials = Materials(problems, held_out, examples)
    job = exact_job(
        checkpoint, teacher_checkpoint, materials, student, options, scratch, context.seed
    ).model_copy(
        update={
            "out": out.resolve(),
            "training": context.training,
            "resume": resume and resume.resolve(),
        }
    )
    with context.progress.bar("practice", planned_steps(job.options)) as bar:
        bar.known(steps_done(resume))

        def on_step(step: int, loss_nats: float) -> None:
            bar.advance(1, f"divergence {loss_nats:.3f}")

        spread = context.training.spread
        rows = train_spread(job, on_step) if spread else Exact(job, on_step).practise()
    if len(rows) < planned_steps(job.options):
        context.log.warning("entropy and pass@k fell: practice ended after %d updates", len(rows))
    write_json(out / "watch.json", looks_in(scratch / LOOKS))
    shutil.rmtree(scratch, ignore_errors=True)
    return rows


class Materials(NamedTuple):
    """What is practised on, watched by, and replayed."""

    problems: Sequence[Problem]
    held_out: Sequence[Problem] = ()
    examples: Sequence[Example] = ()


def exact_job(
    checkpoint: Path,
    teacher_checkpoint: Path,
    materials: Materials,
    student: StudentOptions,
    options: OnPolicyOptions,
    scratch: Path,
    seed: int,
) -> ExactJob:
    """A practice in one process, from its start, that saves nothing but checkpoints in `scratch`;
    its materials are written there."""
    from pipeline.exact_attempts import with_traces

    paths = {name: scratch.resolve() / f"{name}.jsonl" for name in Materials._fields}
    for name, records in materials._asdict().items():
        write_records(paths[name], records)
    return ExactJob(
        base=checkpoint.resolve(),
        teacher=teacher_checkpoint.resolve(),
        scratch=scratch.resolve(),
        out=scratch.resolve(),
        student=student,
        options=with_traces(options, materials.examples).resolved("exact"),
        seed=seed,
        training=TrainingOptions(),
        resume=None,
        **paths,
    )


class Exact:
    """Both models loaded, their heads of one height, and the trainer over them."""

    def __init__(self, job: ExactJob, on_step: OnStep) -> None:
        import torch
        from transformers import AutoTokenizer

        from pipeline.exact_attempts import Practice, trace_rows
        from pipeline.exact_trainer import build_trainer, exact_config
        from pipeline.processors import one_gpu
        from pipeline.trainable import trainable, untouched

        tokenizer, other = (
            AutoTokenizer.from_pretrained(folder, local_files_only=True)
            for folder in (job.base, job.teacher)
        )
        tokens = compare_vocabularies(tokenizer, other)
        torch.manual_seed(job.seed)
        library = job.training.spread or job.training.device_examples is not None
        model = untouched(job.base) if library else trainable(job.base)
        teacher, copied = frozen(job.teacher, packed=not library), frozen(job.base)
        self._job, self._rows = job, shared_rows(model, teacher, tokens)
        self._cut = cut_padding(model, self._rows)
        cut_padding(teacher, self._rows)
        cut_padding(copied, self._rows)
        problems = list(read_records(job.problems, Problem))
        traces = trace_rows(list(read_records(job.examples, Example)), tokenizer)
        longest = max(job.options.max_tokens, *(len(row["said"]) for row in traces), 1)
        # After all models, which DeepSpeed would else share out; before any moves: it says which
        # GPU is this process's.
        config = one_gpu(exact_config(job, longest))
        self.trainer: ExactTrainer = build_trainer(
            model,
            teacher,
            _sampler(copied.to(config.device), tokenizer, job.base.name, job.options),
            tokenizer,
            Practice(problems, job.student, job.options, job.seed, traces),
            config,
            on_step,
            library,
        )
        self._watch_over()

    def _watch_over(self) -> None:
        """Give the trainer its last callbacks."""
        from pipeline.exact_watch import ExactWatch, WatchedCopy, untimed
        from pipeline.training_steps import Housekeeping
        from pipeline.watching import Watching

        job, self._judge = self._job, Judge()
        self._copy = WatchedCopy(self.trainer.sampler, job.student, job.base)
        held_out = list(read_records(job.held_out, Problem))
        about = (self._judge, job.student, job.options, held_out, job.scratch / LOOKS, untimed)
        self._watch = ExactWatch(
            self.trainer, Watching(self._copy, *about), self._copy, job.options
        )
        self.trainer.add_callback(self._watch)
        self.trainer.add_callback(Housekeeping())

    def practise(self) -> list[dict[str, Any]]:
        """Do the whole job, and save the student. Raises TrainingDiverged."""
        kept = self._job.out / LAST_GOOD
        with self._judge:
            try:
                rows = self.run(self._job.resume)
            except TrainingDiverged as error:
                if not self.trainer.skips:  # the weights are broken, too
                    raise
                self.save(kept)
                # The first process writes; when another one ends, all are ended.
                self.trainer.accelerator.wait_for_everyone()
                raise kept_beside(error, kept) from error
        self.save(self._job.out)
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
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        from pipeline.trainable import trained_model

        def cut(plain: Any) -> None:
            cut_padding(plain, self._rows)

        if self._copy.taken is None:
            model = trained_model(self.trainer, self._job.base, cut)
        elif self.trainer.accelerator.is_main_process:
            unset_hf_deepspeed_config()  # or transformers would share this model out as well
            model = AutoModelForCausalLM.from_pretrained(self._copy.taken, local_files_only=True)
            cut(model)
            trained = self.trainer.accelerator.unwrap_model(self.trainer.model)
            model.generation_config = trained.generation_config
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

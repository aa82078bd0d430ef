"""Method `exact` of stage 05: the student's own attempts, the teacher's whole distribution.

For a teacher with the student's vocabulary, as a checkpoint: every token of an attempt is moved
towards what the teacher would write there (TRL `DistillationTrainer`, arXiv 2306.13649). Writes a
checkpoint folder; a killed run resumes from its last complete checkpoint and ends with the same
weights. Attempts are not judged: right and wrong ones are learnt from alike.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import forget_others, newest_complete, steps_done
from pipeline.memory import keep_freed_memory
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import StudentOptions
from pipeline.records import Problem
from pipeline.run import SCRATCH, Context
from pipeline.spread import ExactJob, train_spread
from pipeline.store import write_records
from pipeline.training_options import TrainingOptions
from serve.errors import DataError

# What processes of their own practise on, beside their checkpoints.
PROBLEMS = "problems.jsonl"

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
) -> list[dict[str, Any]]:
    """Train the student on its own attempts at `problems` and save it (bfloat16, tokenizer beside
    it) into `out`. One row a step (`ExactTrainer.rows`).

    Raises DataError for a teacher of another vocabulary, TrainingDiverged at the third update in a
    row that is broken.
    """
    if not problems:
        raise DataError("no problem to practise on")
    keep_freed_memory()
    from pipeline.exact_attempts import planned_steps

    scratch = out / SCRATCH / "checkpoints"
    forget_others(scratch, scratch.with_suffix(".of"), context.training.shape)
    resume = newest_complete(scratch)
    done = steps_done(resume)
    if resume is not None:
        context.log.info("resuming from %s", resume.name)
    if context.training.spread:
        write_records(scratch / PROBLEMS, problems)
        job = ExactJob(
            base=checkpoint.resolve(),
            teacher=teacher_checkpoint.resolve(),
            scratch=scratch.resolve(),
            out=out.resolve(),
            problems=(scratch / PROBLEMS).resolve(),
            student=student,
            options=options,
            seed=context.seed,
            training=context.training,
            resume=resume and resume.resolve(),
        )
        return _refine_spread(job, done, context)
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
        )
        bar.advance(done)
        rows = exact.run(resume)
    exact.save(out)
    shutil.rmtree(scratch, ignore_errors=True)
    return rows


def _refine_spread(job: ExactJob, done: int, context: Context) -> list[dict[str, Any]]:
    """The same in processes of its own, `done` steps of it behind them."""
    from pipeline.exact_attempts import planned_steps

    with context.progress.bar("practice", planned_steps(job.options)) as bar:
        bar.advance(done)
        rows = train_spread(job, lambda step, loss: bar.advance(1, f"divergence {loss:.3f}"))
    shutil.rmtree(job.scratch, ignore_errors=True)
    return rows


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
    ) -> None:
        import torch
        from transformers import AutoTokenizer

        from pipeline.exact_attempts import Practice
        from pipeline.exact_trainer import build_trainer, exact_config
        from pipeline.forecast_memory import PRACTICE_KEPT_SHARE, PROMPT_TOKENS
        from pipeline.processors import one_gpu
        from pipeline.trainable import layers_again, trainable, untouched

        tokenizer, other = (
            AutoTokenizer.from_pretrained(folder, local_files_only=True)
            for folder in (checkpoint, teacher_checkpoint)
        )
        tokens = compare_vocabularies(tokenizer, other)
        options = options.resolved("exact")
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
        self.trainer: ExactTrainer = build_trainer(
            model,
            teacher,
            _sampler(copied.to(config.device), tokenizer, checkpoint.name, options),
            tokenizer,
            Practice(problems, student, options, seed),
            config,
            on_step,
            library,
        )

    def run(self, resume: Path | None) -> list[dict[str, Any]]:
        """Train to the end, from a checkpoint of the same training if one is given."""
        from pipeline.exact_trainer import GUARD

        if resume is not None:
            self.trainer.guard.restore(json.loads((resume / GUARD).read_text(encoding="utf-8")))
        self.trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return self.trainer.rows()

    def save(self, folder: Path) -> None:
        """A plain checkpoint in bfloat16 with as many rows as it came with."""
        import torch

        from pipeline.trainable import trained_model

        model = trained_model(
            self.trainer, self._checkpoint, lambda plain: cut_padding(plain, self._rows)
        )
        if model is None:
            return
        give_back_padding(model, self._cut)
        model.to(torch.bfloat16).save_pretrained(folder)
        self.trainer.processing_class.save_pretrained(folder)


def compare_vocabularies(student_tokenizer: Any, teacher_tokenizer: Any) -> int:
    """How many token ids both have. Raises DataError naming the first one that differs."""
    student, teacher = (
        {index: token for token, index in tokenizer.get_vocab().items()}
        for tokenizer in (student_tokenizer, teacher_tokenizer)
    )
    for index in sorted(student.keys() | teacher.keys()):
        ours, theirs = student.get(index), teacher.get(index)
        if ours != theirs:
            raise DataError(
                f"the teacher's vocabulary is not the student's: token {index} is "
                f"{_quoted(ours)} for the student and {_quoted(theirs)} for the teacher",
                hint='another tokenizer needs on_policy.method = "aligned" or "span"',
            )
    return 1 + int(max(student))


def _quoted(token: str | None) -> str:
    return "no token" if token is None else repr(token)


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


def shared_rows(student: Any, teacher: Any, tokens: int) -> int:
    """Rows of the smaller head. Raises DataError when it has not one for each of `tokens`."""
    counts = [len(model.get_output_embeddings().weight) for model in (student, teacher)]
    if min(counts) < tokens:
        raise DataError(
            f"the heads have {counts[0]} (student) and {counts[1]} (teacher) rows "
            f"for {tokens} tokens"
        )
    return min(counts)


def cut_padding(model: Any, rows: int) -> list[Any]:
    """Leave `rows` of head and embedding; returns what stood beyond, (rows, D) of each.

    Checkpoints of one tokenizer are padded to different multiples (Qwen2.5 1.5B and 7B), and a
    padding row is no token: neither the loss nor an attempt should see one.
    """
    weights = _token_weights(model)
    if all(len(weight) == rows for weight in weights):
        return []
    cut = [weight[rows:].detach().clone() for weight in weights]
    model.resize_token_embeddings(rows)
    return cut


def give_back_padding(model: Any, cut: Sequence[Any]) -> None:
    """Undo `cut_padding`."""
    if not cut:
        return
    import torch

    rows = len(_token_weights(model)[0])
    model.resize_token_embeddings(rows + len(cut[0]), mean_resizing=False)
    with torch.no_grad():
        for weight, beyond in zip(_token_weights(model), cut, strict=True):
            weight[rows:] = beyond


def _token_weights(model: Any) -> list[Any]:
    """Weights with a row for each token: one if head and embedding are tied."""
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return weights[:1] if weights[0] is weights[1] else weights

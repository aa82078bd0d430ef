"""TRL's `DistillationTrainer` with our sampling and, on a CPU, no padding and few logits.

Attempts come from our engine over a copy of the student, each from its own seed, whichever process
draws it. On a CPU TRL's loss of every position of the padded batch takes most of a step: there one
process takes the same value from the answers' places alone. Updates that are broken are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.nn import functional
from transformers import PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from pipeline.exact_attempts import (
    ExactSampler,
    Practice,
    in_parts,
    planned_steps,
    right_padded,
    steps_of_block,
    whole,
)
from pipeline.exact_loss import Side, summed_divergence
from pipeline.forecast_memory import PRACTICE_KEPT_SHARE, PROMPT_TOKENS
from pipeline.head_loss import Workspace, has_plain_head
from pipeline.packing import packed_hidden_states
from pipeline.processors import in_float32_only, processor_settings
from pipeline.spread import ExactJob
from pipeline.store import write_json
from pipeline.tracking import followed
from pipeline.trainable import layers_again
from pipeline.training_steps import WAITED_FOR_S, step_again
from pipeline.update import GRADIENT_LIMIT, Guard
from serve.hardware import has_cuda, has_fast_bfloat16

# The guard's memory, beside the optimizer's in each checkpoint.
GUARD = "guard.json"
OnStep = Callable[[int, float], None]


class ExactTrainer(DistillationTrainer):  # type: ignore[misc]
    """`DistillationTrainer` with a guard and our sampling; one process off CUDA has our loss, too.

    `library_path`: TRL's own loss everywhere.
    """

    _warm = False

    def __init__(self, sampler: ExactSampler, library_path: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.teacher_model.to(self.accelerator.device)  # where FSDP2 leaves it behind
        self.sampler, self.guard = sampler, Guard()
        self._workspace, self._library_path = Workspace(), library_path or has_cuda()
        self._drawn: list[dict[str, torch.Tensor]] = []
        self._loss_nats, self._norm = math.nan, math.nan
        self._attempt_tokens, self._learnt_tokens = 0, 0
        self._update_beta = self.beta

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a checkpoint is a state to resume from, and the run writes its own card."""

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Answers are drawn for a whole update, and read in as many parts as it accumulates."""
        parts = self.args.gradient_accumulation_steps
        if self._step % parts == 0 or not self._drawn:
            drawn = self.sampler.draw(self.accelerator.unwrap_model(self.model), generation_batch)
            own = torch.tensor(self.sampler.drawn_tokens, device=self.accelerator.device)
            tokens = self.accelerator.gather(drawn["completion_mask"].sum()).sum()
            self._attempt_tokens = int(self.accelerator.gather(own).sum())
            self._learnt_tokens, self._loss_nats = int(tokens), 0.0
            self._update_beta = self.beta  # a look after the update may change it before it is told
            self._drawn = [part | {"num_items_in_batch": tokens} for part in in_parts(drawn, parts)]
        return self._drawn[self._step % parts]

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
        """The first step of a process runs twice on a CPU (`step_again`), sampling included."""
        step = partial(super().training_step, model, inputs, *rest)
        if self._warm or self._library_path:
            loss: torch.Tensor = step()
        else:
            self._warm = True
            loss = step_again(step, model)
        # Of the whole update, on every process alike: the guard acts on it.
        self._loss_nats += float(self.accelerator.gather(loss.detach()).mean())
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean divergence (nats) over the tokens of the answers."""
        student, teacher = self.accelerator.unwrap_model(model), self.teacher_model
        library = self._library_path or return_outputs
        if library or not (has_plain_head(student) and has_plain_head(teacher)):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        attempts = right_padded(inputs)
        real_BT = attempts.real_BT
        # A place predicts the token after it.
        asked_N = functional.pad(attempts.answer_BT[:, 1:], (0, 1))[real_BT]
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        with torch.no_grad(), self.accelerator.autocast():
            teacher_ND = packed_hidden_states(teacher, attempts.ids_BT, real_BT, dtype)
        # accelerate puts autocast around `model.forward`, which this way round does not pass.
        with self.accelerator.autocast():
            hidden_ND = packed_hidden_states(student, attempts.ids_BT, real_BT, dtype)
        total = summed_divergence(
            Side(student.get_output_embeddings().weight, hidden_ND[asked_N].to(dtype)),
            Side(teacher.get_output_embeddings().weight, teacher_ND[asked_N].to(dtype)),
            self.beta,
            self._workspace,
        )
        return total / inputs["num_items_in_batch"].clamp(min=1)

    @property
    def skips(self) -> bool:
        """True where a refused update leaves the weights as they were."""
        return bool(self.accelerator.distributed_type != DistributedType.DEEPSPEED)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Before every update: one that the guard refuses is left without gradients, which the
        optimizer passes over. DeepSpeed has made the update by now: there the third refusal ends
        the training, and nothing is skipped."""
        norm = super()._clip_grad_norm(model)
        known = norm is not None
        self._norm = float(whole(norm)) if known else math.nan
        if not self.guard.allows(self._loss_nats, self._norm if known else 0.0):
            model.zero_grad(set_to_none=True)
        return norm

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {
                "loss_nats": _finite(self._loss_nats),
                "gradient_norm": _finite(self._norm),
                "attempt_tokens": self._attempt_tokens,
                "learnt_tokens": self._learnt_tokens,
                "skipped_updates": self.guard.skipped,
                "beta": self._update_beta,
            }
        super().log(logs, start_time)

    def rows(self) -> list[dict[str, Any]]:
        """One row a step. A loss or norm that was not finite is None; skipped updates are counted
        from the first step on; `learnt_tokens` are those of attempts and replayed traces."""
        names = (
            "step",
            "loss_nats",
            "learning_rate",
            "gradient_norm",
            "attempt_tokens",
            "learnt_tokens",
            "skipped_updates",
            "beta",
        )
        history = [row for row in self.state.log_history if "loss_nats" in row]
        return [{name: row[name] for name in names} for row in history]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Steps(TrainerCallback):  # type: ignore[misc]
    """Reports steps, keeps the guard's memory in each checkpoint."""

    def __init__(self, guard: Guard, on_step: OnStep) -> None:
        self._guard, self._on_step = guard, on_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs is not None and "loss_nats" in logs:
            loss = logs["loss_nats"]
            self._on_step(state.global_step, math.nan if loss is None else loss)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / GUARD, self._guard.state())


def build_trainer(
    student: Any,
    teacher: Any,
    sampler: ExactSampler,
    tokenizer: Any,
    practice: Practice,
    config: DistillationConfig,
    on_step: OnStep,
    library_path: bool,
) -> ExactTrainer:
    """A trainer that lacks its last callback, `Housekeeping`. `student` and `teacher` have heads of
    the same rows."""
    trainer = ExactTrainer(
        sampler,
        library_path,
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=practice,
        processing_class=tokenizer,
    )
    trainer.add_callback(Steps(trainer.guard, on_step))
    trainer.remove_callback(PrinterCallback)
    return trainer


def exact_config(job: ExactJob, answer_tokens: int) -> DistillationConfig:
    """The temperature is that of the attempts alone: distributions are compared as they are.

    `answer_tokens`: of the longest attempt or trace.
    """
    cuda, options, training = has_cuda(), job.options, job.training
    at_a_time, readings = training.steps_of(options.batch_lessons)
    tokens = at_a_time * (PROMPT_TOKENS + answer_tokens)
    said = training.gradient_checkpointing
    again = layers_again(said, job.base, tokens, PRACTICE_KEPT_SHARE)
    return DistillationConfig(
        output_dir=str(job.scratch),
        max_steps=planned_steps(options),
        per_device_train_batch_size=at_a_time,
        gradient_accumulation_steps=readings,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        max_grad_norm=GRADIENT_LIMIT,
        beta=options.divergence_beta,
        temperature=1.0,
        generation_kwargs={"temperature": options.temperature},
        max_completion_length=options.max_tokens,
        shuffle_dataset=False,
        disable_dropout=True,
        bf16=has_fast_bfloat16() and not in_float32_only(training.strategy),
        **processor_settings(training.strategy),
        gradient_checkpointing=again,
        optim="adamw_torch_fused",
        weight_decay=0.0,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=options.checkpoint_blocks * steps_of_block(options),
        save_total_limit=2,
        **followed(training.report_to, "practice"),
        ddp_timeout=WAITED_FOR_S,
        seed=job.seed,
        data_seed=job.seed,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
    )

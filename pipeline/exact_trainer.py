"""TRL's `DistillationTrainer` with what a CPU needs: our sampling, no padding, few logits.

On CUDA TRL samples and computes the loss itself. On other devices its `generate` and its loss, of
every position of the padded batch, take most of a step: there attempts come from our engine and
the loss, the same value, from the answers' places alone. Updates that are broken are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from pipeline.exact_attempts import (
    ExactSampler,
    Practice,
    planned_steps,
    right_padded,
    steps_of_block,
)
from pipeline.exact_loss import Side, summed_divergence
from pipeline.head_loss import Workspace, has_plain_head
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.packing import kept_places, packed_hidden_states
from pipeline.store import write_json
from pipeline.training_steps import Housekeeping, step_again
from pipeline.update import GRADIENT_LIMIT, Guard
from serve.hardware import has_cuda, has_fast_bfloat16

# The guard's memory, beside the optimizer's in each checkpoint.
GUARD = "guard.json"
OnStep = Callable[[int, float], None]


class ExactTrainer(DistillationTrainer):  # type: ignore[misc]
    """`DistillationTrainer` with a guard; off CUDA with our sampling and loss."""

    _warm = False

    def __init__(self, sampler: ExactSampler | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.sampler, self.guard = sampler, Guard()
        self._workspace = Workspace()
        self._loss_nats, self._norm, self._attempt_tokens = math.nan, math.nan, 0

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a checkpoint is a state to resume from, and the run writes its own card."""

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if self.sampler is None:
            inputs = super()._prepare_inputs(generation_batch)
        else:
            inputs = self.sampler.draw(self.accelerator.unwrap_model(self.model), generation_batch)
        self._attempt_tokens = int(inputs["num_items_in_batch"])
        return inputs

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
        """The first step of a process runs twice where we sample (`step_again`), sampling
        included."""
        step = partial(super().training_step, model, inputs, *rest)
        if self._warm or self.sampler is None:
            loss: torch.Tensor = step()
        else:
            self._warm = True
            loss = step_again(step, model)
        self._loss_nats = float(loss.detach())
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean divergence (nats) over the tokens of the attempts."""
        student, teacher = self.accelerator.unwrap_model(model), self.teacher_model
        plain = has_plain_head(student) and has_plain_head(teacher)
        if self.sampler is None or return_outputs or not plain:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        attempts = right_padded(inputs)
        kept_BT = kept_places(attempts.real_BT)
        # A place predicts the token after it.
        asked_N = functional.pad(attempts.answer_BT[:, 1:], (0, 1))[kept_BT]
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        with torch.no_grad(), self.accelerator.autocast():
            teacher_ND = packed_hidden_states(teacher, attempts.ids_BT, kept_BT, dtype)
        # accelerate puts autocast around `model.forward`, which this way round does not pass.
        with self.accelerator.autocast():
            hidden_ND = packed_hidden_states(student, attempts.ids_BT, kept_BT, dtype)
        total = summed_divergence(
            Side(student.get_output_embeddings().weight, hidden_ND[asked_N].to(dtype)),
            Side(teacher.get_output_embeddings().weight, teacher_ND[asked_N].to(dtype)),
            self.beta,
            self._workspace,
        )
        return total / inputs["num_items_in_batch"].clamp(min=1)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Before every update: one that the guard refuses is left without gradients, which the
        optimizer passes over."""
        norm = super()._clip_grad_norm(model)
        self._norm = float(norm)
        if not self.guard.allows(self._loss_nats, self._norm):
            model.zero_grad(set_to_none=True)
        return norm

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {
                "loss_nats": _finite(self._loss_nats),
                "gradient_norm": _finite(self._norm),
                "attempt_tokens": self._attempt_tokens,
            }
        super().log(logs, start_time)

    def rows(self) -> list[dict[str, Any]]:
        """One row a step. A loss or norm that was not finite is None: that update was skipped."""
        names = ("step", "loss_nats", "learning_rate", "gradient_norm", "attempt_tokens")
        history = [row for row in self.state.log_history if "loss_nats" in row]
        return [{name: row[name] for name in names} for row in history]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Watch(TrainerCallback):  # type: ignore[misc]
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
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_json(folder / GUARD, self._guard.state())


def build_trainer(
    student: Any,
    teacher: Any,
    sampler: ExactSampler | None,
    tokenizer: Any,
    practice: Practice,
    config: DistillationConfig,
    on_step: OnStep,
) -> ExactTrainer:
    """A trainer ready to run. `student` and `teacher` have heads of the same rows."""
    trainer = ExactTrainer(
        sampler,
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=practice,
        processing_class=tokenizer,
    )
    trainer.add_callback(Watch(trainer.guard, on_step))
    trainer.add_callback(Housekeeping())
    trainer.remove_callback(PrinterCallback)
    return trainer


def exact_config(options: OnPolicyOptions, scratch: Path, seed: int) -> DistillationConfig:
    """The temperature is that of the attempts alone: distributions are compared as they are."""
    cuda = has_cuda()
    return DistillationConfig(
        output_dir=str(scratch),
        max_steps=planned_steps(options),
        per_device_train_batch_size=options.batch_lessons,
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
        bf16=has_fast_bfloat16(),
        use_cpu=not cuda,
        gradient_checkpointing=cuda,
        optim="adamw_torch_fused",
        weight_decay=0.0,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=options.checkpoint_blocks * steps_of_block(options),
        save_total_limit=2,
        report_to="none",
        seed=seed,
        data_seed=seed,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
    )

"""TRL's `SFTTrainer` with what a CPU needs: logits only where there is a label, no reallocation.

On CUDA TRL already projects supervised positions alone (its fused head has a Triton kernel); on
other devices it scores every position, so there the loss of one process is computed here, the same
value from fewer rows. Models that are spread over processes, and packed rows, are TRL's everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from pipeline.head_loss import Workspace, has_plain_head, summed_loss
from pipeline.packing import packed_hidden_states
from pipeline.processors import in_float32_only, one_gpu, processor_settings
from pipeline.recipe import SftOptions
from pipeline.records import Example
from pipeline.supervise import end_of_turn
from pipeline.tracking import followed
from pipeline.trainable import layers_again, quantized, trainable, trained_model, untouched
from pipeline.training_options import TrainingOptions
from pipeline.training_steps import WAITED_FOR_S, Housekeeping, step_again
from serve.errors import TrainingDiverged
from serve.hardware import has_cuda, has_fast_bfloat16

OnStep = Callable[[int, float], None]


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` whose CPU loss sees no padding and projects supervised positions only.

    `library_path`: nothing of this, TRL's own loss.
    """

    _warm = False

    def __init__(self, *arguments: Any, library_path: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._workspace, self._library_path = Workspace(), library_path or has_cuda()

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """The first step of a process runs twice on a CPU (`step_again`)."""
        step = partial(super().training_step, model, inputs, *rest)
        if self._warm or self._library_path:
            return step()  # type: ignore[no-any-return]
        self._warm = True
        return step_again(step, model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean negative log-likelihood (nats) of the completion tokens of the batch."""
        plain = self.accelerator.unwrap_model(model)
        causal = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
        if self._library_path or return_outputs or not has_plain_head(causal):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        real_BT = inputs["attention_mask"].bool()
        next_BT = functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        labels_N = next_BT[real_BT]
        supervised_N = labels_N != -100
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        # accelerate puts autocast around `model.forward`, which this way round does not pass.
        with self.accelerator.autocast():
            hidden_ND = packed_hidden_states(causal, inputs["input_ids"], real_BT, dtype)
        hidden_SD = hidden_ND[supervised_N].to(dtype)
        weight_VD = causal.get_output_embeddings().weight
        total = summed_loss(weight_VD, hidden_SD, labels_N[supervised_N], self._workspace)
        count = supervised_N.sum() if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(count).clamp(min=1)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Records every step's loss, stops at the first one that is not finite."""

    def __init__(self) -> None:
        self.on_step: OnStep = lambda step, loss: None

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"loss {loss}, gradient norm {norm} at step {state.global_step}",
                hint="lower sft.learning_rate",
            )
        self.on_step(state.global_step, loss)


class Training:
    """A trainer ready to run: the few verbs the stage needs."""

    def __init__(self, trainer: CompletionTrainer, watch: _Watch, base: Path) -> None:
        self.trainer, self._watch, self._base = trainer, watch, base

    def planned_steps(self) -> int:
        arguments = self.trainer.args
        read: int = arguments.train_batch_size * arguments.world_size
        rows_a_step: int = read * arguments.gradient_accumulation_steps
        steps = math.ceil(len(self.trainer.train_dataset) / rows_a_step)
        return steps * int(arguments.num_train_epochs)

    def watch(self, on_step: OnStep) -> None:
        self._watch.on_step = on_step

    def run(self, resume: Path | None) -> list[dict[str, float]]:
        """Train to the end; one row a step with its loss in nats and learning rate."""
        self.trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return [
            {
                "step": row["step"],
                "epoch": round(row["epoch"], 4),
                "loss_nats": row["loss"],
                "learning_rate": row["learning_rate"],
            }
            for row in self.trainer.state.log_history
            if "loss" in row
        ]

    def save(self, folder: Path) -> None:
        """A plain checkpoint in bfloat16, adapters merged, tokenizer beside it."""
        model = trained_model(self.trainer, self._base)
        if model is not None:
            model.to(torch.bfloat16).save_pretrained(folder)
            self.trainer.processing_class.save_pretrained(folder)


def build_trainer(
    base: Path,
    tokenizer: Any,
    examples: Sequence[Example],
    options: SftOptions,
    scratch: Path,
    seed: int,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 frozen
) -> Training:
    """The trainer for `options`; nothing runs yet."""
    torch.manual_seed(seed)
    watch = _Watch()
    adapted = options.method != "full"
    trainer = CompletionTrainer(
        library_path=_library_path(training),
        model=_student(base, options, training),
        args=one_gpu(sft_config(options, scratch, seed, training, base, _end(tokenizer))),
        train_dataset=as_dataset(examples),
        processing_class=tokenizer,
        callbacks=[watch, Housekeeping()],
        peft_config=_lora(options) if adapted else None,
    )
    trainer.remove_callback(PrinterCallback)
    return Training(trainer, watch, base)


def _end(tokenizer: Any) -> str | None:
    """What the tokenizer does not call its end yet, though its template ends turns with it."""
    end = end_of_turn(tokenizer)
    return end if end != tokenizer.eos_token else None


def _student(base: Path, options: SftOptions, training: TrainingOptions) -> Any:
    if options.method == "qlora":
        return quantized(base)
    return untouched(base) if _library_path(training) else trainable(base)


def _library_path(training: TrainingOptions) -> bool:
    """Whether TRL's own loss trains. On a CPU ours adds up over the parts of a batch as it is."""
    return training.library_path and (has_cuda() or training.spread or training.packing)


def as_dataset(examples: Sequence[Example]) -> Dataset:
    """Conversational prompt-completion rows: TRL then puts the loss on the completion alone."""
    return Dataset.from_list(
        [
            {
                "prompt": list(e.prompt),
                "completion": [{"role": "assistant", "content": e.completion}],
            }
            for e in examples
        ]
    )


def sft_config(
    options: SftOptions,
    scratch: Path,
    seed: int,
    training: TrainingOptions,
    base: Path,
    end: str | None = None,
) -> SFTConfig:
    """Without `packing` no example is ever cut: longer ones were left out before. `end`: of a turn,
    which the trained student's tokenizer and configuration then have for their end."""
    at_a_time, readings = training.steps_of(options.batch_examples)
    bfloat16 = has_fast_bfloat16() if options.dtype == "auto" else options.dtype == "bfloat16"
    again = layers_again(training.gradient_checkpointing, base, at_a_time * options.max_tokens)
    return SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=at_a_time,
        gradient_accumulation_steps=readings,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=options.warmup_share,
        weight_decay=options.weight_decay,
        max_length=options.max_tokens if training.packing else None,
        packing=training.packing,
        pad_to_multiple_of=16,
        completion_only_loss=True,
        eos_token=end,
        bf16=bfloat16 and not in_float32_only(training.strategy),
        **processor_settings(training.strategy),
        gradient_checkpointing=again,
        optim="adamw_torch_fused",
        logging_steps=1,
        logging_nan_inf_filter=False,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=options.checkpoint_steps,
        save_total_limit=2,
        **followed(training.report_to, "sft"),
        ddp_timeout=WAITED_FOR_S,
        seed=seed,
        data_seed=seed,
        dataloader_num_workers=0,
        dataloader_pin_memory=has_cuda(),
        disable_tqdm=True,
    )


def _lora(options: SftOptions) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=options.lora_rank,
        lora_alpha=2 * options.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )

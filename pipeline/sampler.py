"""The student in practice: float32 weights that are trained, and a fast copy that answers.

Attempts come from that copy, or from vLLM beside it (`training.sampler`), which takes the weights
anew for every block. What vLLM draws depends on the company of a request: an attempt that a kill
lost may be another one when it is drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.forecast_memory import (
    ATTEMPT_SLOTS,
    PROMPT_TOKENS,
    SAMPLING_SHARE,
    sampling_context,
)
from pipeline.head_loss import has_plain_head
from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions
from pipeline.store import write_json
from pipeline.trainable import trainable
from pipeline.training_options import TrainingOptions
from serve.engines.base import Engine
from serve.engines.child import ChildEngine
from serve.engines.copies import Copies
from serve.engines.packed_linear import pack
from serve.engines.transformers import TransformersEngine, rows_that_fit
from serve.engines.vllm_process import names_of_gpus, open_one, vllm_python
from serve.errors import DataError
from serve.hardware import has_cuda, has_fast_bfloat16


def sampling_slots(gpu_bytes: int, config: Any, max_tokens: int) -> int:
    """Attempts written at a time on a GPU of that size: as many as their keys and values leave.

    By the GPU's size, not by what is free: a resumed run answers in the same blocks.
    """
    room = rows_that_fit(SAMPLING_SHARE * gpu_bytes, config, PROMPT_TOKENS + max_tokens)
    return min(ATTEMPT_SLOTS, room or ATTEMPT_SLOTS)


def untie(model: Any, folder: Path) -> None:
    """Give the saved model a head of its own where it is the embedding's.

    vLLM (0.31) reloads what a checkpoint names. A head that is tied is not named, and stays the one
    it was on processors, where vLLM packs it.
    """
    if not model.config.get_text_config(decoder=True).tie_word_embeddings:
        return
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    weights = {f"{name}.weight": head.weight.detach().cpu().clone()}
    save_file(weights, folder / "head.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"tie_word_embeddings": False})


class Sampler:
    """`model` is trained, `engine` answers with the weights of the last `refresh`."""

    def __init__(
        self,
        checkpoint: Path,
        student: StudentOptions,
        max_tokens: int,
        recompute: bool = False,
        training: TrainingOptions = TrainingOptions(),  # noqa: B008 frozen
        handed: Path = Path("handed"),
    ) -> None:
        """`recompute`: layers are computed again on the way back. `handed`: a folder for weights on
        their way to vLLM."""
        if training.sampler == "vllm":
            vllm_python()  # refused before anything is loaded
        self._training = training
        # vLLM's copies, opened when first asked.
        self._beside: list[ChildEngine] = []
        self._handed = handed
        self.checkpoint, self._student = checkpoint, student
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        self.model = trainable(checkpoint)
        if not has_plain_head(self.model):
            raise DataError(
                f"student {checkpoint.name}: its logits are more than its hidden states times its "
                "head's weight, which practice does not know how to train",
                hint='on_policy.method = "exact" leaves it to TRL',
            )
        self.model.to("cuda" if has_cuda() else "cpu").train()
        if recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        dtype = torch.bfloat16 if has_fast_bfloat16() else torch.float32
        copy = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
        copy.to(self.model.device)
        pack(copy, exact=False)
        context = self._context_tokens = sampling_context(max_tokens)
        slots = ATTEMPT_SLOTS
        if has_cuda():
            memory = torch.cuda.get_device_properties(self.model.device).total_memory
            slots = sampling_slots(memory, copy.config, max_tokens)
        self.engine = TransformersEngine(copy, self.tokenizer, checkpoint.name, slots, context)
        self.end = int(self.tokenizer.eos_token_id)
        pad = self.tokenizer.pad_token_id
        self.pad = self.end if pad is None else int(pad)

    def prompt_ids(self, question: str) -> list[int]:
        return self.engine.prompt_ids(student_messages(self._student, question))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def answering(self) -> Engine:
        """What writes attempts, with the weights as they are now."""
        self.refresh()
        if self._training.sampler == "transformers":
            return self.engine
        self.engine.model.save_pretrained(self._handed)
        self.tokenizer.save_pretrained(self._handed)
        untie(self.engine.model, self._handed)
        for copy in self._beside:
            copy.reload(self._handed)
        if not self._beside:
            self._open_beside()
        return self._beside[0] if len(self._beside) == 1 else Copies(self._beside)

    def _open_beside(self) -> None:
        plan = self._training
        seen: list[dict[str, str]] = [
            {"CUDA_VISIBLE_DEVICES": name} for name in names_of_gpus(plan.sampler_gpus)
        ]
        self._beside = [
            open_one(
                self._handed,
                ATTEMPT_SLOTS,
                self._context_tokens,
                memory_share=plan.sampler_memory_share,
                seen=gpus,
            )
            for gpus in seen or [{}]
        ]
        for copy in self._beside:
            copy.ready()

    def close(self) -> None:
        for copy in self._beside:
            copy.close()

    @torch.no_grad()
    def refresh(self) -> None:
        """Answer with the weights as they are now."""
        trained = dict(self.model.named_parameters())
        for name, parameter in self.engine.model.named_parameters():
            parameter.copy_(trained[name])

    def keep(self, folder: Path) -> None:
        """Write the student as it is now."""
        self.refresh()
        self.engine.model.save_pretrained(folder)

    def take(self, folder: Path) -> None:
        """Go back to the student in `folder`."""
        self.merge(folder, 0.0)

    @torch.no_grad()
    def merge(self, folder: Path, share: float) -> None:
        """Weigh the weights as they are with `share`, those of the student in `folder` with the
        rest (Wortsman et al. 2022, arXiv 2109.01903, section 3)."""
        other = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        weights = dict(other.named_parameters())
        for name, parameter in self.model.named_parameters():
            target = weights[name].to(parameter.device)
            parameter.copy_(target if share == 0 else target.lerp(parameter, share))

    def save(self, folder: Path) -> None:
        """A plain checkpoint in bfloat16, tokenizer beside it."""
        self.model.to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

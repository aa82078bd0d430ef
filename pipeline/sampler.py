"""The student in practice: float32 weights that are trained, and a fast copy that answers.

Attempts come from that copy, or from vLLM beside it (`training.sampler`; vllm_sampler.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipeline.forecast_memory import (
    ATTEMPT_SLOTS,
    PROMPT_TOKENS,
    SAMPLING_SHARE,
    sampling_context,
)
from pipeline.head_loss import has_plain_head
from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions
from pipeline.trainable import trainable
from pipeline.training_options import TrainingOptions
from pipeline.vllm_sampler import VllmSampler
from serve.engines.base import Engine
from serve.engines.checkpoint_tokenizer import CheckpointTokenizer
from serve.engines.packed_linear import pack
from serve.engines.transformers import TransformersEngine, rows_that_fit
from serve.errors import DataError
from serve.hardware import has_cuda, has_fast_bfloat16

# Questions with the most characters, one of which has the most tokens.
MEASURED = 64


def sampling_slots(gpu_bytes: int, config: Any, max_tokens: int) -> int:
    """Attempts written at a time on a GPU of that size: as many as their keys and values leave.

    By the GPU's size, not by what is free: a resumed run answers in the same blocks.
    """
    room = rows_that_fit(SAMPLING_SHARE * gpu_bytes, config, PROMPT_TOKENS + max_tokens)
    return min(ATTEMPT_SLOTS, room or ATTEMPT_SLOTS)


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
        questions: Sequence[str] = (),
    ) -> None:
        """`recompute`: layers are computed again on the way back. `handed`: a folder for weights on
        their way to vLLM. `questions`: all that will be asked. Raises DataError where an attempt at
        one does not fit the student."""
        self.checkpoint, self._student = checkpoint, student
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        context = self._context_for(questions, max_tokens)
        # Before the weights, because it may refuse.
        self._vllm = (
            VllmSampler(handed, ATTEMPT_SLOTS, context, training)
            if training.sampler == "vllm"
            else None
        )
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
        slots = ATTEMPT_SLOTS
        if has_cuda():
            memory = torch.cuda.get_device_properties(self.model.device).total_memory
            slots = sampling_slots(memory, copy.config, max_tokens)
        self.engine = TransformersEngine(copy, self.tokenizer, checkpoint.name, slots, context)
        self.end = int(self.tokenizer.eos_token_id)
        pad = self.tokenizer.pad_token_id
        self.pad = self.end if pad is None else int(pad)

    def _context_for(self, questions: Sequence[str], max_tokens: int) -> int:
        """Room for a whole attempt after the longest prompt."""
        read = CheckpointTokenizer(self.tokenizer)
        asked = [student_messages(self._student, q) for q in nlargest(MEASURED, questions, key=len)]
        longest = max((len(read.prompt_ids(messages)) for messages in asked), default=0)
        config = AutoConfig.from_pretrained(self.checkpoint, local_files_only=True)
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        if most is not None and longest + max_tokens > most:
            raise DataError(
                f"a prompt of {longest} tokens and an attempt of {max_tokens} do not fit the "
                f"{most} of student {self.checkpoint.name}",
                hint="lower on_policy.max_tokens, or leave long problems out",
            )
        return max(sampling_context(max_tokens), longest + max_tokens)

    def prompt_ids(self, question: str) -> list[int]:
        return self.engine.prompt_ids(student_messages(self._student, question))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def answering(self) -> Engine:
        """What writes attempts, with the weights as they are now."""
        self.refresh()
        if self._vllm is None:
            return self.engine
        return self._vllm.answering(self.engine.model, self.tokenizer)

    def close(self) -> None:
        if self._vllm is not None:
            self._vllm.close()

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

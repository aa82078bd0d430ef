"""How training is spread over processes, kept in memory and followed: recipe section `training`."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from serve.messages import Record

Strategy = Literal["none", "ddp", "fsdp2", "zero3"]
Tracker = Literal["trackio", "tensorboard", "wandb"]


class Packed(Record):
    """Beside a stage's config where examples share rows: other rows make other numbers."""

    packing: Literal[True] = True


class TrainingOptions(Record):
    """Of SFT, and of practice by `exact`; other methods of practice update in one process.

    `packing` alone is in a fingerprint: it decides which examples share a step. The rest moves the
    last digits of sums, as the device does.
    """

    processes: int = Field(
        1, ge=1, le=65_536, description="that train together, a GPU each; more than 1: a strategy"
    )
    strategy: Strategy = Field(
        "none",
        description="ddp: a whole model each; fsdp2, zero3: a share of weights, gradients and "
        "moments each",
    )
    device_examples: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="examples a process reads at a time, the others of its share after them; "
        "unsaid: its whole share",
    )
    packing: bool = Field(
        False,
        description="sft: examples share rows of sft.max_tokens, and sft.batch_examples counts "
        "rows",
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="layers are computed again on the way back; unsaid: where keeping them would "
        "fill much of a GPU",
    )
    sampler: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="practice, not exact: what writes the student's attempts; vllm, beside the "
        "training, writes them several times as fast on a GPU",
    )
    sampler_gpus: tuple[int, ...] = Field(
        (), description="sampler vllm: GPUs by number, a copy on each; unsaid: where it trains"
    )
    sampler_memory_share: float = Field(
        0.15, gt=0.0, le=0.95, description="sampler vllm: of the memory of its GPU"
    )
    report_to: tuple[Tracker, ...] = Field((), description="where every step's numbers go as well")

    @model_validator(mode="after")
    def _processes_need_a_strategy(self) -> TrainingOptions:
        if self.processes > 1 and self.strategy == "none":
            raise ValueError(f"processes {self.processes} need a strategy: ddp, fsdp2 or zero3")
        return self

    def is_default(self) -> bool:
        return self == TrainingOptions()

    @property
    def numbers(self) -> tuple[Packed, ...]:
        """What of it belongs in the fingerprint of SFT."""
        return (Packed(),) if self.packing else ()

    @property
    def spread(self) -> bool:
        """True when processes of their own train, and not the run's."""
        return self.strategy != "none"

    @property
    def shape(self) -> str:
        """What a checkpoint to resume from depends on."""
        return f"{self.strategy} {self.processes}"

    @property
    def library_path(self) -> bool:
        """True when TRL's own loss trains a model as transformers made it.

        What this project puts into a model for one process on a CPU (packed batches, lean norms)
        passes `forward` by, which sharded models need, and knows no packing.
        """
        return self.spread or self.packing or self.device_examples is not None

    def steps_of(self, batch_examples: int) -> tuple[int, int]:
        """Examples a process reads at a time, and how often it does so before an update."""
        share = math.ceil(batch_examples / self.processes)
        at_a_time = min(share, self.device_examples or share)
        return at_a_time, math.ceil(share / at_a_time)

    def divides(self, batch_examples: int) -> bool:
        """Whether every process reads full shares of a batch, and of each share full parts."""
        at_a_time, readings = self.steps_of(batch_examples)
        return at_a_time * readings * self.processes == batch_examples

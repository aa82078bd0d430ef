"""What trainers do around a step on a CPU: the first one twice, the heap trimmed, checkpoints
marked when they are whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline.checkpoints import COMPLETE
from pipeline.memory import give_back_memory

# Buffers of many sizes leave holes in the heap: it grows with every step unless given back.
STEPS_BETWEEN_TRIMS = 16
# Other processes wait while the first prepares the examples, or looks at held-out problems.
WAITED_FOR_S = 6 * 3600


def step_again(step: Callable[[], torch.Tensor], model: Any) -> torch.Tensor:
    """`step` run twice and counted once, for the first of a process.

    Once in fifty processes the very first products came out differently in the third digit, and a
    resumed run then ended with other weights (docs/notes.md).
    """
    first = step()
    model.zero_grad()
    loss = step()
    if not torch.equal(first, loss):
        logging.getLogger("retort").warning(
            "the first step gave %r, repeated %r nats; the second counts", first, loss
        )
    return loss


class Housekeeping(TrainerCallback):  # type: ignore[misc]
    """Trims the heap now and then, marks checkpoints; the last callback a trainer is given."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % STEPS_BETWEEN_TRIMS == 0:
            give_back_memory()
        if state.global_step >= state.max_steps:
            control.should_save = False  # what is saved next is the student itself

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its share
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

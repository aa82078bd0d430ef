"""The watch over method `exact`: its trainer looks at held-out problems between blocks.

Where several processes train, all take part in gathering the weights, the first one looks, and all
heed what it says.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from pipeline.exact_attempts import ExactSampler, steps_of_block
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions
from pipeline.store import write_json
from pipeline.watching import Watching
from serve.engines.base import Engine

# What it has seen so far, beside the optimizer's memory in each checkpoint.
WATCH = "watch.json"


class WatchedCopy:
    """The copy of the student that writes attempts, as `Watching` asks of it.

    `taken` is the folder of the student to save instead of the one that was trained last.
    """

    def __init__(self, sampler: ExactSampler, student: StudentOptions, checkpoint: Path) -> None:
        self.engine, self.checkpoint = sampler.engine, checkpoint
        self.taken: Path | None = None
        self._student = student

    def answering(self) -> Engine:
        """Its weights were taken over by all processes together."""
        return self.engine

    def prompt_ids(self, question: str) -> list[int]:
        return self.engine.prompt_ids(student_messages(self._student, question))

    def keep(self, folder: Path) -> None:
        self.engine.model.save_pretrained(folder)

    def take(self, folder: Path) -> None:
        self.taken = folder


class ExactWatch(TrainerCallback):  # type: ignore[misc]
    """Looks where one is due; the divergence moves, or training ends, as `collapse_watch` rules."""

    def __init__(
        self, trainer: Any, watching: Watching, copy: WatchedCopy, options: OnPolicyOptions
    ) -> None:
        self._trainer, self._watching, self._copy = trainer, watching, copy
        self._steps_of_block = steps_of_block(options)

    def restore(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / WATCH).read_text(encoding="utf-8"))
        self._watching.restore(state)
        self._trainer.beta = self._watching.beta

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._heeds(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        blocks, within = divmod(state.global_step, self._steps_of_block)
        if within == 0 and self._heeds(blocks):
            control.should_training_stop = True
            control.should_save = False  # a resumed training would go on from there

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / WATCH, self._watching.state())

    def _heeds(self, done: int) -> bool:
        """Look after `done` blocks if that is due; True where practice is to end."""
        if not self._watching.due(done):
            return False
        accelerator = self._trainer.accelerator
        self._trainer.sampler.take_weights(accelerator.unwrap_model(self._trainer.model))
        said: list[Any] = [None]
        if accelerator.is_main_process:
            ends = self._watching.ends_practice(done)
            said = [(ends, self._watching.beta, self._copy.taken)]
        ends, self._trainer.beta, self._copy.taken = broadcast_object_list(said)[0]
        return bool(ends)


def untimed(*_: Any, **__: Any) -> nullcontext[None]:
    """`Watching` times its looks; the trainer's steps are not timed by what they do."""
    return nullcontext()

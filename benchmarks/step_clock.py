"""How long each step of a trainer takes."""

from __future__ import annotations

import time
from typing import Any


class Clock:
    """Seconds of each step, a GPU waited for. A `TrainerCallback` by its verbs."""

    def __init__(self) -> None:
        self.steps_s: list[float] = []
        self._started_s = 0.0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *_, **__: None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        wait_for_gpu()
        self._started_s = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wait_for_gpu()
        self.steps_s.append(time.monotonic() - self._started_s)


def wait_for_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()

"""Looks at held-out problems between blocks, what they advise, and the best student they saw."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from pipeline.attempts import sample_attempts
from pipeline.collapse_watch import (
    Look,
    advice,
    best_look,
    look_at,
    mean_entropy_nats,
    shifted_beta,
)
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import StudentOptions
from pipeline.records import Problem
from pipeline.store import write_file
from pipeline.tasks.judge import Judge
from serve.engines.base import Engine

TEMPERATURE = 0.7
Timed = Callable[..., AbstractContextManager[None]]


class Watched(Protocol):
    """A student in practice: `pipeline/sampler.py`, and for `exact` `pipeline/exact_watch.py`."""

    checkpoint: Path
    engine: Any

    def answering(self) -> Engine: ...

    def prompt_ids(self, question: str) -> list[int]: ...

    def keep(self, folder: Path) -> None: ...

    def take(self, folder: Path) -> None: ...


def looks_in(folder: Path) -> list[Look]:
    """All that were taken into a scratch folder."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("look-*.json"))]


class Watching:
    """`beta` is the divergence practice goes on with. Looks are kept in `scratch`."""

    def __init__(
        self,
        sampler: Watched,
        judge: Judge,
        student: StudentOptions,
        options: OnPolicyOptions,
        held_out: Sequence[Problem],
        scratch: Path,
        timed: Timed,
    ) -> None:
        self._sampler, self._judge, self._student = sampler, judge, student
        self._options, self._held_out = options, held_out
        self._scratch, self._timed = scratch, timed
        self.looks: list[Look] = []
        self.beta, self._shifted = options.divergence_beta, False

    def state(self) -> dict[str, Any]:
        return {"looks": self.looks, "beta": self.beta, "shifted": self._shifted}

    def restore(self, state: dict[str, Any]) -> None:
        self.looks, self.beta, self._shifted = state["looks"], state["beta"], state["shifted"]

    def due(self, done: int) -> bool:
        return bool(self._held_out) and self._options.looks_after(done)

    def ends_practice(self, done: int) -> bool:
        """Look where a look is due after `done` blocks, and heed the rule of `collapse_watch`."""
        log = logging.getLogger("retort")
        if not self.look(done):
            return False
        advised = advice(self.looks, self.beta, self._shifted)
        if advised == "shift":
            log.warning("entropy and pass@k fall: beta %g is halved", self.beta)
            self.beta, self._shifted = shifted_beta(self.beta), True
        if advised == "stop":
            log.warning("entropy and pass@k fall: practice ends")
            self._take_best()
        return advised == "stop"

    def look(self, done: int) -> bool:
        """One after `done` blocks, if it is due; False where it is not."""
        if not self.due(done):
            return False
        path = self._scratch / f"look-{done:06d}.json"
        if path.exists():
            look: Look = json.loads(path.read_text(encoding="utf-8"))
        else:
            with self._timed("watch", one_heap=True):
                look = self._fresh_look() | {"blocks": float(done)}
            write_file(path, json.dumps(look))
        self.looks.append(look)
        unfinished = 0 < done < self._options.blocks
        if unfinished and best_look(self.looks) == len(self.looks) - 1:
            self._sampler.keep(self._scratch / "best")
        return True

    def _fresh_look(self) -> Look:
        sampler = self._sampler
        options = self._options.model_copy(
            update={"samples": self._options.watch_samples, "temperature": TEMPERATURE}
        )
        answers = sample_attempts(
            sampler.answering(), self._judge, self._held_out, self._student, options, 0, -1
        )
        prompts = [sampler.prompt_ids(a.problem.question) for a in answers]
        return look_at(answers, mean_entropy_nats(sampler.engine, answers, prompts))

    def _take_best(self) -> None:
        """The student of the best look: that of SFT where no later one was better."""
        best, index = self._scratch / "best", best_look(self.looks)
        if index < len(self.looks) - 1:
            self._sampler.take(best if index > 0 else self._sampler.checkpoint)

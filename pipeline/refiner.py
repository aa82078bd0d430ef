"""Practice, block by block: the student attempts, the teacher grades, the student is updated.

Everything sampled or said is kept the moment it is there; updates are computed again after a kill,
from the newest state, and end with the same weights.
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.attempts import (
    Attempt,
    problems_of_block,
    sample_attempts,
    seed_of,
)
from pipeline.grading import Grading
from pipeline.head_loss import Workspace
from pipeline.lesson import Batch, Lesson, batch_of, shuffled
from pipeline.memory import give_back_memory, keep_freed_memory
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.practice_state import load_state, save_state
from pipeline.recipe import StudentOptions, TeacherOptions
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.sampler import Sampler
from pipeline.store import AppendLog, read_records
from pipeline.tasks.judge import Judge
from pipeline.teaching import Teaching
from pipeline.tracking import following
from pipeline.update import Guard, backward, update
from pipeline.watching import Watching

Row = dict[str, Any]
Say = Callable[[int, str], None]


class Refiner:
    """One student in practice. `run` does all blocks and returns a row for each."""

    def __init__(
        self,
        sampler: Sampler,
        grading: Grading,
        judge: Judge,
        teacher: TeacherOptions,
        student: StudentOptions,
        options: OnPolicyOptions,
        replay: Sequence[Lesson],
        held_out: Sequence[Problem],
        scratch: Path,
        context: Context,
    ) -> None:
        self.sampler, self._judge, self._student, self._options = sampler, judge, student, options
        self._replay, self._scratch, self._context = list(replay), scratch, context
        self._optimizer = torch.optim.AdamW(
            sampler.model.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True
        )
        self._guard, self._workspace, self._warm = Guard(), Workspace(), False
        self._teaching = Teaching(sampler, grading, judge, teacher, context, self._timed)
        self.watching = Watching(sampler, judge, student, options, held_out, scratch, self._timed)
        self.rows: list[Row] = []
        self.trained_tokens = 0
        self.took_s: defaultdict[str, float] = defaultdict(float)
        self._attempts_path = scratch / "attempts.jsonl"
        self._known: defaultdict[int, list[Attempt]] = defaultdict(list)
        with AppendLog(self._attempts_path):  # trims what a kill tore
            for attempt in read_records(self._attempts_path, Attempt):
                self._known[attempt.block].append(attempt)

    def run(self, practice: Sequence[Problem]) -> list[Row]:
        """All blocks that are not done. Raises TrainingDiverged, EngineError, DiskError."""
        options, start = self._options, self._restore()
        trackers = self._context.training.report_to
        with (
            self._context.progress.bar("practice", 3 * options.blocks) as bar,
            following(trackers, "practice") as tell,
        ):
            bar.known(3 * start)
            if not self.watching.looks:
                self.watching.look(0)
            for block in range(start, options.blocks):
                self.step(problems_of_block(practice, options, block), block, bar.advance)
                self._told(tell)
                if block + 1 == options.blocks and options.merge < 1:
                    self.sampler.merge(self.sampler.checkpoint, options.merge)
                if self.watching.ends_practice(block + 1):
                    break
                self._save_if_due(block + 1)
        return self.rows

    def step(self, problems: Sequence[Problem], block: int, say: Say = lambda *_: None) -> Row:
        """One block: attempts, lessons, updates. `say(1, note)` after each of the three."""
        attempts = self._attempts(problems, block)
        passed = sum(bool(a.verdict.passed) for a in attempts)
        say(1, f"{passed} of {len(attempts)} right")
        options = self._options.model_copy(update={"beta": self.watching.beta})
        lessons = self._teaching.lessons(attempts, options)
        say(1, f"{len(lessons)} lessons")
        losses = self._learn(lessons, block)
        say(1, f"loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else "nothing to learn")
        self.rows.append(self._row(block, attempts, lessons, losses))
        return self.rows[-1]

    def _told(self, tell: Callable[[Mapping[str, float], int], None]) -> None:
        """The newest block's numbers, by update."""
        *before, row = self.rows
        done = sum(r["updates"] for r in before)
        for number, loss_nats in enumerate(row["losses_nats"], done + 1):
            if loss_nats is not None:
                tell({"train/loss": loss_nats}, number)
        share = row["right"] / max(1, row["attempts"])
        tell({"train/right_share": share, "train/beta": row["beta"]}, done + row["updates"])

    def _restore(self) -> int:
        """Go on from the newest state; the number of blocks that are done."""
        counters = load_state(self._scratch, self.sampler.model, self._optimizer)
        if counters is None:
            return 0
        self.rows = counters["rows"]
        self.watching.restore(counters["watching"])
        self._guard.restore(counters["guard"])
        self.trained_tokens = counters["trained_tokens"]
        self.took_s.update(counters["took_s"])
        self._context.log.info("going on after block %d", counters["block"])
        return int(counters["block"])

    def _attempts(self, problems: Sequence[Problem], block: int) -> list[Attempt]:
        """Those of a block, sampled unless they are known; kept all at once."""
        wanted = len(problems) * self._options.samples
        if len(self._known[block]) < wanted:  # a power loss may have left a part of them
            known = {attempt.key: attempt for attempt in self._known[block]}
            with self._timed("sampling", one_heap=True):
                sampled = sample_attempts(
                    self.sampler.answering(),
                    self._judge,
                    problems,
                    self._student,
                    self._options,
                    self._context.seed,
                    block,
                )
            with AppendLog(self._attempts_path) as log:
                log.append([a for a in sampled if a.key not in known])
            # vLLM writes other words the second time; grades are kept for the first.
            self._known[block] = [known.get(a.key, a) for a in sampled]
        return self._known.pop(block)

    def _learn(self, lessons: Sequence[Lesson], block: int) -> list[float]:
        """`passes` over the lessons, with replayed traces between them; the losses in nats."""
        options, losses = self._options, []
        with self._timed("updates"):
            for number in range(options.passes):
                seed = seed_of(self._context.seed, "pass", block, number)
                draw = random.Random(seed)  # noqa: S311 an order, not a secret
                replayed = draw.sample(self._replay, min(options.replay, len(self._replay)))
                everything = shuffled([*lessons, *replayed], draw)
                for start in range(0, len(everything), options.batch_lessons):
                    share = (number + start / len(everything)) / options.passes
                    self._set_rate((block + share) / options.blocks)
                    part = everything[start : start + options.batch_lessons]
                    losses.append(self._update(batch_of(part, self.sampler.pad)))
                    self.trained_tokens += sum(len(lesson.ids) for lesson in part)
        give_back_memory()
        return losses

    def _update(self, batch: Batch) -> float:
        """One update; the first of a process is computed twice, as in `pipeline/sft_trainer.py`."""
        model, limit = self.sampler.model, self._options.ratio_limit
        if not self._warm:
            backward(model, batch, limit, self._workspace)
            self._warm = True
        done = update(model, self._optimizer, batch, self._guard, limit, self._workspace)
        return done.loss_nats

    def _set_rate(self, progress: float) -> None:
        """Cosine to a tenth."""
        share = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self._optimizer.param_groups:
            group["lr"] = self._options.learning_rate * share

    def _row(
        self,
        block: int,
        attempts: Sequence[Attempt],
        lessons: Sequence[Lesson],
        losses: Sequence[float],
    ) -> Row:
        return {
            "block": block,
            "attempts": len(attempts),
            "right": sum(bool(a.verdict.passed) for a in attempts),
            "attempt_tokens": sum(a.completion.completion_tokens for a in attempts),
            "unspelt": self._teaching.unspelt,
            "lessons": len(lessons),
            "places": sum(lesson.places for lesson in lessons),
            "updates": len(losses),
            "skipped_updates": self._guard.skipped,
            # JSON knows no NaN; such an update was skipped.
            "losses_nats": [round(x, 6) if math.isfinite(x) else None for x in losses],
            "beta": self.watching.beta,
        }

    def _save_if_due(self, done: int) -> None:
        if done % self._options.checkpoint_blocks == 0 and done < self._options.blocks:
            model = self.sampler.model
            save_state(self._scratch, done, model, self._optimizer, self._counters())

    def _counters(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "watching": self.watching.state(),
            "guard": self._guard.state(),
            "trained_tokens": self.trained_tokens,
            "took_s": dict(self.took_s),
        }

    @contextmanager
    def _timed(self, phase: str, one_heap: bool = False) -> Iterator[None]:
        """Sampling and training want memory in different ways (`pipeline/memory.py`)."""
        keep_freed_memory(one_heap=one_heap)
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.took_s[phase] += time.monotonic() - started_s
            keep_freed_memory()

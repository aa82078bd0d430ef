"""What one update learns from: an answer's tokens, and what is wanted in some of their places.

A lesson comes from a method (`pipeline/methods`) or from a trace; `pipeline/update.py` turns
lessons into a loss and knows nothing of where they come from.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

# A bucket never holds less: log 0 would be infinite.
SMALLEST_SHARE = 1e-6


class Target(NamedTuple):
    """A wanted distribution over some tokens in the place of token `at`; the rest is one bucket.

    `beta` is the divergence's: 0 forward KL, 1 reverse KL.
    """

    at: int
    ids: tuple[int, ...]
    shares: tuple[float, ...]
    beta: float = 0.0


class Advantage(NamedTuple):
    """How much better than expected token `at` is, in nats; `old_nats` is its log probability when
    it was drawn."""

    at: int
    nats: float
    old_nats: float


@dataclass(frozen=True)
class Lesson:
    """`ids`: prompt and answer. `at` counts from the first id of the prompt. `attempt`: the key of
    the one it comes from."""

    ids: tuple[int, ...]
    targets: tuple[Target, ...] = ()
    advantages: tuple[Advantage, ...] = ()
    attempt: str = ""

    @property
    def places(self) -> int:
        return len(self.targets) + len(self.advantages)


def told(ids: Sequence[int], first: int, attempt: str = "") -> Lesson:
    """Every token from `first` on as it stands: negative log-likelihood, as in SFT."""
    targets = tuple(Target(at, (ids[at],), (1.0,)) for at in range(first, len(ids)))
    return Lesson(tuple(ids), targets, attempt=attempt)


def shuffled(lessons: Sequence[Lesson], draw: random.Random) -> list[Lesson]:
    """In an order by chance, those of an attempt one after another.

    They begin with the same words, which a batch reads once (`pipeline/layout.py`).
    """
    by_attempt: defaultdict[tuple[str, int], list[Lesson]] = defaultdict(list)
    for number, lesson in enumerate(lessons):
        by_attempt[lesson.attempt, 0 if lesson.attempt else number].append(lesson)
    together = list(by_attempt.values())
    draw.shuffle(together)
    return [lesson for some in together for lesson in some]


class Batch(NamedTuple):
    """Lessons as tensors: B of T tokens, P places with K listed tokens, A advantages.

    `target_rows_P` and `advantage_rows_A` are places among the B x T, one before the token meant.
    """

    ids_BT: torch.Tensor
    real_BT: torch.Tensor
    target_rows_P: torch.Tensor
    target_ids_PK: torch.Tensor
    target_shares_PK: torch.Tensor
    betas_P: torch.Tensor
    advantage_rows_A: torch.Tensor
    advantage_ids_A: torch.Tensor
    advantages_A: torch.Tensor
    old_nats_A: torch.Tensor


def batch_of(lessons: Sequence[Lesson], pad: int) -> Batch:
    """Padded on the right. A listed token with share 0 fills up what other places list more of."""
    width = max(len(lesson.ids) for lesson in lessons)
    ids_BT = torch.full((len(lessons), width), pad)
    real_BT = torch.zeros(len(lessons), width, dtype=torch.bool)
    targets: list[tuple[int, Target]] = []
    advantages: list[tuple[int, int, Advantage]] = []
    for row, lesson in enumerate(lessons):
        ids_BT[row, : len(lesson.ids)] = torch.tensor(lesson.ids)
        real_BT[row, : len(lesson.ids)] = True
        targets += [(row * width + t.at - 1, t) for t in lesson.targets]
        advantages += [(row * width + a.at - 1, lesson.ids[a.at], a) for a in lesson.advantages]
    listed = max((len(t.ids) for _, t in targets), default=1)
    target_ids_PK = torch.zeros(len(targets), listed, dtype=torch.long)
    shares_PK = torch.zeros(len(targets), listed)
    for place, (_, target) in enumerate(targets):
        target_ids_PK[place, : len(target.ids)] = torch.tensor(target.ids)
        shares_PK[place, : len(target.ids)] = torch.tensor(target.shares)
    return Batch(
        ids_BT,
        real_BT,
        torch.tensor([row for row, _ in targets], dtype=torch.long),
        target_ids_PK,
        shares_PK,
        torch.tensor([t.beta for _, t in targets]),
        torch.tensor([row for row, _, _ in advantages], dtype=torch.long),
        torch.tensor([token for _, token, _ in advantages], dtype=torch.long),
        torch.tensor([a.nats for _, _, a in advantages]),
        torch.tensor([a.old_nats for _, _, a in advantages]),
    )

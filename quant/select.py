"""Which artifact to ship: among those that passed, the smallest, the fastest or the closest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from quant.gate import Outcome
from serve.messages import Record

Rule = Literal["smallest", "fastest", "closest"]


class Candidate(Record):
    """A proven artifact with what the choice looks at."""

    name: str
    file: str
    size_bytes: int
    tokens_per_s: float
    kl_nats: float
    outcome: Outcome


class Choice(Record):
    """`name` and `file` are None when nothing passed; `pareto` names what nothing else beats."""

    name: str | None
    file: str | None
    why: str
    pareto: tuple[str, ...]


COST: dict[Rule, Callable[[Candidate], float]] = {
    "smallest": lambda c: c.size_bytes,
    "fastest": lambda c: -c.tokens_per_s,
    "closest": lambda c: c.kl_nats,
}


def choose(candidates: Sequence[Candidate], rule: Rule) -> Choice:
    """The best by `rule` of those that passed."""
    passed = [c for c in candidates if c.outcome == "pass"]
    front = tuple(c.name for c in candidates if not any(_beats(other, c) for other in candidates))
    if not passed:
        outcomes = ", ".join(f"{c.name} {c.outcome}" for c in candidates) or "no artifact is sound"
        return Choice(name=None, file=None, why=f"nothing passed: {outcomes}", pareto=front)
    best = min(passed, key=lambda c: (COST[rule](c), c.size_bytes, c.name))
    why = f"the {rule} of {len(passed)} that pass"
    return Choice(name=best.name, file=best.file, why=why, pareto=front)


def _beats(one: Candidate, other: Candidate) -> bool:
    """No worse in size, speed and divergence, and better in one of them."""
    ours = (one.size_bytes, -one.tokens_per_s, one.kl_nats)
    theirs = (other.size_bytes, -other.tokens_per_s, other.kl_nats)
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs

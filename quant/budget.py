"""A type for every group of tensors, so that a file loses least within a number of bytes.

The types' prices are measured by `quant.sensitivity`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from serve.errors import DataError, UsageError

BANDS = 5


class Price(NamedTuple):
    """What a group costs in one type."""

    size_bytes: int
    kl_nats: float


def groups_of(names: Sequence[str], blocks: int) -> dict[str, tuple[str, ...]]:
    """Tensor names by kind and band of layers, `attn_q 0-5`; those outside layers by themselves."""
    members: dict[str, list[str]] = {}
    width = -(-blocks // BANDS)
    for name in names:
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        key = name
        if match:
            first = int(match[1]) // width * width
            key = f"{match[2]} {first}-{min(first + width, blocks) - 1}"
        members.setdefault(key, []).append(name)
    return {key: tuple(tensors) for key, tensors in members.items()}


def allocate(prices: Mapping[str, Mapping[str, Price]], budget_bytes: int) -> dict[str, str]:
    """A type a group: from the smallest up, always the step that saves most nats a byte.

    Steps go along each group's lower convex hull, where greedy is optimal up to the last step.
    Raises UsageError when the smallest file is over the budget, DataError for a group without
    types.
    """
    bare = [group for group, options in prices.items() if not options]
    if bare:
        raise DataError(f"no tensor type suits {bare[0]} of this student")
    hulls = {group: _hull(options) for group, options in prices.items()}
    at = dict.fromkeys(hulls, 0)
    spent = sum(hull[0][1].size_bytes for hull in hulls.values())
    if spent > budget_bytes:
        raise UsageError(f"{budget_bytes} bytes are too few: the smallest file has {spent}")
    steps = sorted(
        (
            (after.kl_nats - before.kl_nats) / (after.size_bytes - before.size_bytes),
            group,
            step,
            after.size_bytes - before.size_bytes,
        )
        for group, hull in hulls.items()
        for step, ((_, before), (_, after)) in enumerate(pairwise(hull), 1)
    )
    for _, group, step, cost in steps:
        if at[group] == step - 1 and spent + cost <= budget_bytes:
            at[group], spent = step, spent + cost
    return {group: hulls[group][index][0] for group, index in at.items()}


def overrides_of(
    chosen: Mapping[str, str], groups: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, str], ...]:
    """One exact pattern a group, for the quantizer."""
    return tuple(
        ("^(" + "|".join(re.escape(name) for name in groups[group]) + ")$", kind)
        for group, kind in chosen.items()
    )


def _hull(options: Mapping[str, Price]) -> list[tuple[str, Price]]:
    """Types on the lower convex hull of (bytes, nats), smallest first."""
    hull: list[tuple[str, Price]] = []
    for kind, price in sorted(options.items(), key=lambda item: item[1]):
        if hull and price.kl_nats >= hull[-1][1].kl_nats:
            continue
        while len(hull) > 1 and _slope(hull[-2][1], hull[-1][1]) >= _slope(hull[-1][1], price):
            hull.pop()
        hull.append((kind, price))
    return hull


def _slope(one: Price, other: Price) -> float:
    return (other.kl_nats - one.kl_nats) / (other.size_bytes - one.size_bytes)

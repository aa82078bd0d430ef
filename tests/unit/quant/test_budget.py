"""Bytes go where they save most: groups, and the choice within a budget."""

import re

import pytest

from quant.budget import Price, allocate, groups_of, overrides_of
from serve.errors import UsageError


def test_groups_are_kinds_in_bands_of_layers():
    names = [f"blk.{b}.{kind}.weight" for b in range(12) for kind in ("attn_q", "ffn_up")]
    groups = groups_of([*names, "token_embd.weight"], blocks=12)
    assert list(groups)[:3] == ["attn_q 0-2", "ffn_up 0-2", "attn_q 3-5"]
    assert groups["attn_q 9-11"] == tuple(f"blk.{b}.attn_q.weight" for b in (9, 10, 11))
    assert groups["token_embd.weight"] == ("token_embd.weight",)
    assert sum(map(len, groups.values())) == 25


PRICES = {
    "fragile": {"Q4": Price(40, 1.0), "Q5": Price(50, 0.2), "Q8": Price(80, 0.01)},
    "robust": {"Q4": Price(40, 0.05), "Q5": Price(50, 0.02), "Q8": Price(80, 0.001)},
}


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (80, {"fragile": "Q4", "robust": "Q4"}),
        (90, {"fragile": "Q5", "robust": "Q4"}),
        (120, {"fragile": "Q8", "robust": "Q4"}),
        (130, {"fragile": "Q8", "robust": "Q5"}),
        (160, {"fragile": "Q8", "robust": "Q8"}),
    ],
)
def test_bytes_go_where_they_save_most(budget, chosen):
    assert allocate(PRICES, budget) == chosen


def test_a_type_off_the_hull_is_never_chosen():
    prices = {"g": {"a": Price(10, 1.0), "waste": Price(20, 0.95), "b": Price(30, 0.1)}}
    assert [allocate(prices, budget)["g"] for budget in (10, 29, 30)] == ["a", "a", "b"]
    worse = {"g": {"a": Price(10, 1.0), "larger and worse": Price(20, 1.5)}}
    assert allocate(worse, 100) == {"g": "a"}


def test_a_budget_below_everything_is_refused():
    with pytest.raises(UsageError, match="79 bytes are too few: the smallest file has 80"):
        allocate(PRICES, 79)


def test_a_pattern_matches_its_group_and_nothing_else():
    ((pattern, kind),) = overrides_of(
        {"g": "Q5_0"}, {"g": ("blk.1.attn_q.weight", "output.weight")}
    )
    assert kind == "Q5_0"
    assert re.search(pattern, "blk.1.attn_q.weight")
    assert re.search(pattern, "output.weight")
    for other in ("blk.11.attn_q.weight", "blk.1xattn_q.weight", "token_output.weight"):
        assert not re.search(pattern, other)

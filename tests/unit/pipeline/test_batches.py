"""Shares of requests for actors: nothing missing is left out, nothing is in two shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batches import shares_of
from pipeline.recipe_files import find_recipe, load_recipe
from serve.errors import RecipeError
from serve.messages import Message, Request


def request(lead: str, key: int) -> Request:
    turns = (Message(role="system", content=lead), Message(role="user", content=f"{key}?"))
    return Request(key=f"{key:03}", messages=turns)


REQUESTS = [request("ab"[key % 2], key) for key in range(10)]
EVERYTHING = {r.key for r in REQUESTS}


@given(st.sets(st.sampled_from(sorted(EVERYTHING))), st.integers(1, 12))
def test_every_missing_request_is_wanted_once_whatever_the_size_of_a_share(missing, size):
    shares = list(shares_of(REQUESTS, missing, size))
    wanted = [key for _, keys in shares for key in keys]
    assert sorted(wanted) == sorted(missing)
    assert all(len(share) <= size for share, _ in shares)
    assert all(set(keys) <= {r.key for r in share} for share, keys in shares)


def test_shares_are_cut_alike_however_much_is_answered():
    whole = [[r.key for r in share] for share, _ in shares_of(REQUESTS, EVERYTHING, 4)]
    assert whole == [["000", "006", "003", "009"], ["002", "008", "005"], ["004", "001", "007"]]
    resumed = [[r.key for r in share] for share, _ in shares_of(REQUESTS, {"001", "009"}, 4)]
    assert resumed == [whole[0], whole[2]]


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 12))
def test_every_share_has_its_part_of_each_beginning(short, long, size):
    asked = [request("short", key) for key in range(short)]
    asked += [request("long", 100 + key) for key in range(long)]
    shares = [share for share, _ in shares_of(asked, {r.key for r in asked}, size)]
    for lead in ("short", "long"):
        counts = [sum(r.messages[0].content == lead for r in share) for share in shares]
        assert max(counts) - min(counts) <= 1


def test_a_budget_of_tokens_is_not_spread_over_actors():
    wishes = ("scale.executor=ray", "teacher.token_budget=1000")
    with pytest.raises(RecipeError, match="token_budget is counted by one process"):
        load_recipe(find_recipe("smoke"), wishes)

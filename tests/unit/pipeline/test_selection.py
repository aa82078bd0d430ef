"""s1's choice among traces: difficult, from every family, long ones rather than short ones."""

from collections import Counter

import numpy as np
import pytest

from pipeline.quality import own_reason
from pipeline.recipe import CurateOptions
from pipeline.records import Problem, Trace, Verdict
from pipeline.selection import Candidate, Solved, diverse, solved_problems
from pipeline.store import write_records
from serve.messages import Completion


def candidate(number, family="f", tokens=10):
    return Candidate(f"{family}{number:03d}", family, tokens)


def trace(tokens=10, passed=True, reason="correct"):
    return Trace(
        key="k",
        problem=Problem(question="1 + 1 =", answer="2", family="f"),
        sample=0,
        model="m",
        prompt_sha256="p",
        completion=Completion(
            text="1 + 1 = 2\nAnswer: 2", finish="stop", prompt_tokens=1, completion_tokens=tokens
        ),
        verdict=Verdict(passed=passed, reason=reason, extracted="2", verifier="v"),
    )


def test_what_a_reference_solves_is_easy(tmp_path):
    rows = [
        Solved(problem=f"p{n}", by=by)
        for n, by in enumerate([(), ("base student",), ("teacher", "base student"), ()])
    ]
    write_records(tmp_path / "references.jsonl", rows)
    assert solved_problems(tmp_path) == {"p1", "p2"}


def test_every_family_has_its_share_whatever_its_size():
    some = [candidate(n, "many") for n in range(400)] + [candidate(n, "few") for n in range(60)]
    counts = Counter(c.family for c in diverse(some, 100, seed=1))
    assert counts == {"many": 48, "few": 52}


def test_the_longest_are_drawn_first_by_halves():
    some = [candidate(n, tokens=100 - n) for n in range(40)]
    first = Counter(diverse(some, 1, seed)[0].key for seed in range(2000))
    shares = [first[f"f{rank:03d}"] / 2000 for rank in range(4)]
    assert shares == pytest.approx([0.5, 0.25, 0.125, 0.0625], abs=0.025)


def test_the_seed_alone_decides_and_no_more_is_drawn_than_there_is():
    some = [candidate(n, tokens=n + 1) for n in range(20)]
    assert diverse(some, 5, 3) == diverse(some[::-1], 5, 3)
    assert diverse(some, 99, 3) == some


def test_candidates_too_deep_to_be_drawn_are_not_held_and_change_nothing():
    """Counted, they still weigh: the draw is the one over all of them."""
    some = [candidate(n, tokens=n % 977) for n in range(9_000)]
    ranked = sorted(some, key=lambda c: (-c.tokens, c.key))
    draw = np.random.default_rng(7)
    expected = []
    for _ in range(20):
        draw.integers(1)
        weights = 0.5 ** np.arange(len(ranked))
        expected.append(ranked.pop(draw.choice(len(ranked), p=weights / weights.sum())))
    assert diverse(iter(some), 20, 7) == sorted(expected)


def test_answered_keeps_wrong_answers_by_the_other_filters():
    answered = CurateOptions(keep="answered", max_tokens=20)

    def reason(made):
        return own_reason(made, "1 + 1 = 2", answered)

    assert reason(trace(passed=False, reason="wrong")) is None
    assert reason(trace(passed=None, reason="verifier_timeout")) is None
    assert reason(trace(tokens=21)) == "too_long"
    assert reason(trace(passed=False, reason="truncated")) == "truncated"
    assert reason(trace(passed=False, reason="no_answer")) == "no_answer"

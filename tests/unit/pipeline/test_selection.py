"""s1's choice among traces: difficult, from every family, long ones rather than short ones."""

from collections import Counter

import pytest

from pipeline.curate import drop_reason
from pipeline.recipe import CurateOptions
from pipeline.records import Problem, Trace, Verdict
from pipeline.selection import Solved, difficult, diverse, solved_problems
from pipeline.store import write_records
from serve.messages import Completion


def trace(number, family="f", tokens=10, passed=True, reason="correct"):
    return Trace(
        key=f"{family}{number:03d}",
        problem=Problem(question=f"{family} {number} =", answer="2", family=family),
        sample=0,
        model="m",
        prompt_sha256="p",
        completion=Completion(
            text="1 + 1 = 2\nAnswer: 2", finish="stop", prompt_tokens=1, completion_tokens=tokens
        ),
        verdict=Verdict(passed=passed, reason=reason, extracted="2", verifier="v"),
    )


def test_what_a_reference_solves_is_easy(tmp_path):
    traces = [trace(n) for n in range(4)]
    rows = [
        Solved(problem=traces[n].problem.key, by=by)
        for n, by in enumerate([(), ("base student",), ("teacher", "base student"), ()])
    ]
    write_records(tmp_path / "references.jsonl", rows)
    solved = solved_problems(tmp_path)
    assert difficult(traces, solved) == [traces[0], traces[3]]


def test_every_family_has_its_share_whatever_its_size():
    traces = [trace(n, "many") for n in range(400)] + [trace(n, "few") for n in range(60)]
    counts = Counter(t.problem.family for t in diverse(traces, 100, seed=1))
    assert counts == {"many": 48, "few": 52}


def test_the_longest_are_drawn_first_by_halves():
    traces = [trace(n, tokens=100 - n) for n in range(40)]
    first = Counter(diverse(traces, 1, seed)[0].key for seed in range(2000))
    shares = [first[f"f{rank:03d}"] / 2000 for rank in range(4)]
    assert shares == pytest.approx([0.5, 0.25, 0.125, 0.0625], abs=0.025)


def test_the_seed_alone_decides_and_no_more_is_drawn_than_there_is():
    traces = [trace(n, tokens=n + 1) for n in range(20)]
    assert diverse(traces, 5, 3) == diverse(traces[::-1], 5, 3)
    assert diverse(traces, 99, 3) == traces


def test_answered_keeps_wrong_answers_by_the_other_filters():
    answered = CurateOptions(keep="answered", max_tokens=20)
    assert drop_reason(trace(1, passed=False, reason="wrong"), [], answered) is None
    assert drop_reason(trace(1, passed=None, reason="verifier_timeout"), [], answered) is None
    assert drop_reason(trace(1, tokens=21), [], answered) == "too_long"
    assert drop_reason(trace(1, passed=False, reason="truncated"), [], answered) == "truncated"
    assert drop_reason(trace(1, passed=False, reason="no_answer"), [], answered) == "no_answer"

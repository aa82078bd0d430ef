from pipeline.ladder import Judged, is_loop, ladder_rows
from pipeline.records import Verdict
from serve.messages import Completion


def judged(rung, item, passed, sample=0, reason=None, tokens=10):
    return Judged(
        rung=rung,
        item=item,
        family="f",
        sample=sample,
        completion=Completion(text="t", finish="stop", prompt_tokens=1, completion_tokens=tokens),
        verdict=Verdict(
            passed=passed,
            reason=reason or ("correct" if passed else "wrong"),
            extracted="1",
            verifier="v",
        ),
    )


def test_rows_pair_every_rung_with_the_base_student():
    answers = [judged("base student", str(i), i < 1) for i in range(4)]
    answers += [judged("SFT student", str(i), i < 3) for i in range(4)]
    base, trained = ladder_rows(answers, [("base student", None), ("SFT student", 5)], k=2)
    assert (base["accuracy"], trained["accuracy"]) == (0.25, 0.75)
    assert base["against_base"] is None
    assert trained["against_base"]["gained"] == 2
    assert trained["against_base"]["difference"] == 0.5
    assert trained["families"]["f"]["items"] == 4


def test_an_unscored_answer_is_in_no_share():
    answers = [
        judged("base student", "a", True),
        judged("base student", "b", None, reason="verifier_timeout"),
    ]
    row = ladder_rows(answers, [("base student", None)], k=2)[0]
    assert (row["items"], row["unscored"], row["accuracy"]) == (1, 1, 1.0)


def test_pass_at_k_uses_drawn_samples_only():
    answers = [judged("base student", "a", True)]
    answers += [judged("base student", "a", s == 1, sample=s) for s in (1, 2)]
    row = ladder_rows(answers, [("base student", None)], k=2)[0]
    assert row["pass_at"] == {"1": 0.5, "2": 1.0, "items": 1.0}


def test_loops_are_seen():
    assert is_loop("and so on " * 20)
    assert not is_loop("a short one")
    assert not is_loop(" ".join(str(i * i) for i in range(60)))

"""Students whose answers are known: one reasons, one only sounds as if."""

import pytest

from pipeline.contamination import Overlap
from pipeline.records import Verdict
from pipeline.transfer_summary import Asked, summary
from pipeline.transfer_table import text_of
from serve.messages import Completion

CUTS = ("0 %", "25 %", "50 %", "75 %", "another's")


def rows(rung, suite, right, items=20, style="", family="f"):
    return [
        Asked(
            rung=rung,
            suite=suite,
            style=style,
            item=f"i{n}",
            family=family,
            completion=Completion(text="", finish="stop", prompt_tokens=1, completion_tokens=1),
            verdict=Verdict(passed=n < right, reason="wrong", extracted=None, verifier="v"),
        )
        for n in range(items)
    ]


def student(rung, fresh, forced, styles=(8, 6)):
    found = rows(rung, "fresh", fresh) + rows(rung, "harder", fresh // 2, items=10)
    for name, right in zip(CUTS, forced, strict=True):
        found += rows(rung, "forced", right, style=name)
    for name, right in zip(("terse", "wordy"), styles, strict=True):
        found += rows(rung, "styles", right, style=name)
    return found


FOUND = summary(
    student("teacher", 20, (2, 4, 9, 15, 0))
    + student("reasons", 10, (1, 2, 5, 8, 0))
    + student("decorates", 10, (10, 10, 10, 10, 10))
)


def test_suites_show_the_share_of_the_teachers_accuracy():
    cell = FOUND["suites"]["fresh"]["reasons"]
    assert (cell["whole"]["accuracy"], cell["of_teacher"]) == (0.5, 0.5)
    harder = FOUND["suites"]["harder"]["reasons"]
    assert (harder["whole"]["accuracy"], harder["of_teacher"]) == (0.5, 0.5)
    assert harder["families"]["f"]["items"] == 10
    assert harder["families_of_teacher"] == {"f": 0.5}
    assert "| fresh | f | 100.0 (1.00) | 50.0 (0.50) | 50.0 (0.50) |" in text_of(FOUND)


def test_an_answer_that_needs_its_reasoning_is_told_from_one_that_wears_it():
    reasons, decorates = (FOUND["rungs"][name]["forced"] for name in ("reasons", "decorates"))
    assert reasons["depends"]["difference"] == pytest.approx(0.5)
    assert reasons["depends"]["interval"][0] > 0
    assert decorates["depends"]["difference"] == 0.0
    assert [reasons[name]["accuracy"] for name in CUTS] == [0.05, 0.1, 0.25, 0.4, 0.0]


def test_styles_have_a_mean_a_worst_and_a_spread_and_stand_beside_the_same_items():
    styles = FOUND["rungs"]["reasons"]
    assert styles["over_styles"] == pytest.approx(
        {"items": 20, "as_trained": 0.5, "mean": 0.35, "worst": 0.3, "spread": 0.1}
    )
    assert styles["styles"]["wordy"]["difference"]["difference"] == pytest.approx(-0.2)
    assert styles["styles"]["wordy"]["as_trained"]["accuracy"] == 0.5


def test_styles_are_summed_over_the_items_that_all_of_them_have():
    """A translation of half of them, the easy half, is no better style."""
    found = rows("s", "fresh", 10) + rows("s", "styles", 10, style="terse")
    found += rows("s", "styles", 10, items=10, style="German")
    cell = summary(found)["rungs"]["s"]
    assert [cell["styles"][n]["share"]["accuracy"] for n in ("terse", "German")] == [0.5, 1.0]
    assert cell["over_styles"] == pytest.approx(
        {"items": 10, "as_trained": 1.0, "mean": 1.0, "worst": 1.0, "spread": 0.0}
    )


def test_the_text_says_it():
    text = text_of(FOUND).splitlines()
    assert text[2] == "| rung | fresh | harder |"
    assert text[5] == (
        "| reasons | 50.0 [30, 70], 0.50 of the teacher's | 50.0 [24, 76], 0.50 of the teacher's |"
    )
    assert "| reasons | 20 | 50.0 | 35.0 | 30.0 | 10.0 | 40.0 | 30.0 |" in text
    assert any(line.startswith("| decorates | 20 | 50.0 | 50.0 |") for line in text)


def test_a_suite_that_was_searched_for_training_data_in_vain_says_so():
    assert "| harder | none of 10 |  |  |  |  |" in text_of(FOUND)
    hit = Overlap(
        suite="fresh", item="i0", kind="8-gram", where="prompt", source="p", matched="1 + 1"
    )
    lines = text_of(summary(rows("teacher", "fresh", 5), [hit])).splitlines()
    row = next(line for line in lines if line.startswith("| fresh | 8-gram"))
    assert row.startswith("| fresh | 8-gram of a prompt 1 | teacher | 25.0 [11, 47] | 21.1 ")


def test_an_unscored_answer_is_in_no_share():
    unscored = Verdict(passed=None, reason="verifier_timeout", extracted="1", verifier="v")
    odd = rows("r", "fresh", 2, items=4)
    odd[3] = odd[3].model_copy(update={"verdict": unscored})
    assert summary(odd)["suites"]["fresh"]["r"]["whole"]["items"] == 3

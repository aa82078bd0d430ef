import pytest

from pipeline.tasks.extract import answer_forms, extract_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 2 = 4\nAnswer: 4", "4"),
        ("Final answer: **12**.", "12"),
        ("The answer is 7.", "7"),
        ("so \\(x = 3\\)\n\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("<think>\n1 + 1 = 2\n</think>\nAnswer: 2", "2"),
        ("Answer: 3\nNo, wait.\nAnswer: 4", "4"),
        ("first line\n42", "42"),
        ("**Answer:** `5`", "5"),
        ("s = 16", "s = 16"),
        (r"The answer is \(42\).", "42"),
        ("The answer is $42$.", "42"),
        ("The result is 12, so the final answer is 13", "13"),
        ("Final answer: result = 5", "5"),
    ],
)
def test_the_last_announcement_wins(text, expected):
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    "text", ["", "   ", "<think>\nstill thinking Answer: 4", "<think>x</think>"]
)
def test_no_text_after_the_reasoning_is_no_answer(text):
    assert extract_answer(text) is None


def test_a_named_value_is_also_read_without_its_name():
    assert answer_forms("s = 16") == ["s = 16", "16"]
    assert answer_forms("16") == ["16"]

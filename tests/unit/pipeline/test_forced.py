"""Where reasoning is cut, and what is put in its place."""

import pytest

from pipeline.forced import SWAPPED, first_line, forced_beginnings
from pipeline.ladder import Judged
from pipeline.records import Verdict
from serve.messages import Completion

REFERENCES = {"a": "12", "b": "2", "c": "wet", "d": "12"}


def judged(item, text, family="f", finish="stop", said="12"):
    return Judged(
        rung="r",
        item=item,
        family=family,
        sample=0,
        completion=Completion(text=text, finish=finish, prompt_tokens=1, completion_tokens=9),
        verdict=Verdict(passed=True, reason="correct", extracted=said, verifier="v"),
    )


OWN = judged("a", "<think>\n3 + 4 = 7\n7 + 5 = 12\n</think>\nAnswer: 12")


def test_reasoning_is_cut_at_words_and_the_answer_begun_in_its_own_form():
    begun = forced_beginnings([OWN], REFERENCES)
    assert begun == {
        ("a", "0 %"): "<think>\n\n</think>\nAnswer:",
        ("a", "25 %"): "<think>\n3 + 4\n</think>\nAnswer:",
        ("a", "50 %"): "<think>\n3 + 4 = 7\n</think>\nAnswer:",
        ("a", "75 %"): "<think>\n3 + 4 = 7\n7 + 5\n</think>\nAnswer:",
    }


def test_reasoning_without_tags_stays_without():
    begun = forced_beginnings([judged("a", "3 + 4 = 7\n7 + 5 = 12\nAnswer: 12")], REFERENCES)
    assert begun["a", "50 %"] == "3 + 4 = 7\nAnswer:"
    assert begun["a", "0 %"] == "Answer:"


def test_it_is_swapped_within_a_family():
    other = judged("b", "<think>\n1 + 1 = 2\n</think>\nAnswer: 2", said="2")
    stranger = judged("c", "<think>\nrain\n</think>\nAnswer: wet", family="g")
    begun = forced_beginnings([OWN, other, stranger], REFERENCES)
    assert begun["a", SWAPPED] == "<think>\n1 + 1 = 2\n</think>\nAnswer:"
    assert begun["b", SWAPPED] == "<think>\n3 + 4 = 7\n7 + 5 = 12\n</think>\nAnswer:"
    assert ("c", SWAPPED) not in begun


@pytest.mark.parametrize(
    ("item", "said"), [("b", "12"), ("d", "7")], ids=["answered alike", "has the same answer"]
)
def test_reasoning_that_leads_to_the_same_answer_is_not_swapped_in(item, said):
    other = judged(item, "<think>\n8 + 4\n</think>\nAnswer: x", said=said)
    assert ("a", SWAPPED) not in forced_beginnings([OWN, other], REFERENCES)


def test_unfinished_and_unreasoned_answers_are_left_out():
    cut = judged("b", "<think>\n1 + 1", finish="length")
    assert forced_beginnings([cut, judged("c", "Answer: 3")], REFERENCES) == {}


@pytest.mark.parametrize(
    ("text", "finish", "kept"),
    [
        (" 42\nNow another", "length", (" 42", "stop")),
        ("\n42\nNow another", "length", (" 42", "stop")),
        (" 42 and so on and", "length", (" 42 and so on and", "length")),
        (" 42\nAnswer: 43", "stop", (" 42\nAnswer: 43", "stop")),
    ],
)
def test_an_answer_whose_line_was_ended_is_not_cut_off(text, finish, kept):
    said = first_line(judged("a", text, finish=finish).completion)
    assert (said.text, said.finish) == kept

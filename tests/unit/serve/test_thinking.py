"""The thinking budget, the waits, and a stream that is taken apart alike wherever it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.messages import Chunk
from serve.reasoning import THINK, THOUGHT
from serve.thinking import Thinking


def told(thinking, text, size=3, finish="stop"):
    """Everything shown of `text`, fed `size` characters (a token each) at a time."""
    shown = {"reasoning": "", "answer": ""}
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    turn = None
    for index, piece in enumerate(pieces):
        ends = finish if index == len(pieces) - 1 else None
        turn = thinking.feed(Chunk(text=piece, tokens=1, finish=ends))
        for part, words in turn.parts:
            shown[part] += words
        if turn.begun is not None:
            break
    return shown["reasoning"], shown["answer"], turn


@given(st.integers(1, 40))
def test_reasoning_and_answer_are_apart_and_trimmed_wherever_the_text_is_cut(size):
    text = "<think>\n2 + 2 = 4\n</think>\n\nAnswer: 4\n"
    assert told(Thinking(None, None, 0), text, size)[:2] == ("2 + 2 = 4", "Answer: 4")


@given(st.integers(1, 40))
def test_a_template_that_opened_the_tag_needs_none_in_the_text(size):
    text = "2 + 2 = 4</think>4"
    assert told(Thinking(THINK, None, 0), text, size)[:2] == ("2 + 2 = 4", "4")


def test_a_tag_inside_an_answer_s_code_is_shown():
    text = "Write `<think>` first and `</think>` last:\n```\n<think>\n</think>\n```"
    assert told(Thinking(None, None, 0), text)[:2] == ("", text)


@pytest.mark.parametrize(("finish", "said"), [("stop", "reasoning_unclosed"), ("length", "length")])
def test_reasoning_that_never_closed_says_so(finish, said):
    reasoning, answer, turn = told(Thinking(None, None, 0), "<think>\n2 + 2 </th", 4, finish)
    assert (reasoning, answer, turn.finish) == ("2 + 2 </th", "", said)


def test_a_spent_budget_closes_the_reasoning_and_asks_for_the_answer():
    thinking = Thinking(None, 4, 0)
    reasoning, answer, turn = told(thinking, "<think>1 + 2 + 3 + 4 + 5</think>15", 3)
    # The third chunk ends the tag and is the first token of reasoning.
    assert turn.begun == "<think>1 + 2 + 3 +\n</think>\n"
    assert (reasoning, answer, turn.finish) == ("1 + 2 + 3 +", "", None)
    assert told(thinking, "Answer: 3")[1] == "Answer: 3"


def test_a_budget_that_ends_inside_the_closing_tag_takes_the_half_tag_back():
    thinking = Thinking(None, 3, 0)
    turn = told(thinking, "<think>12</think>", 3)[2]
    assert turn.begun == "<think>12\n</think>\n"


def test_no_budget_at_all_begins_with_closed_reasoning():
    thinking = Thinking(None, 0, 0)
    assert thinking.begin() == "<think>\n\n</think>\n"
    assert told(thinking, "Answer: 4")[:2] == ("", "Answer: 4")
    opened = Thinking(THINK, 0, 0)
    assert opened.begin() == "\n\n</think>\n"
    assert told(opened, "Answer: 4")[:2] == ("", "Answer: 4")


def test_reasoning_is_closed_in_the_tags_that_the_model_knows():
    thinking = Thinking(None, 0, 0, THOUGHT)
    assert thinking.begin() == "<|begin_of_thought|>\n\n<|end_of_thought|>\n"
    text = "<|begin_of_solution|>\nAnswer: 4\n<|end_of_solution|>"
    assert told(thinking, text)[:2] == ("", "Answer: 4")


def test_the_end_of_thinking_is_put_off_as_often_as_asked():
    thinking = Thinking(None, None, 2)
    reasoning, answer, turn = told(thinking, "<think>\n1 + 1 = 3\n</think>\nAnswer: 3", 5)
    assert turn.begun == "<think>\n1 + 1 = 3\nWait"
    assert (reasoning, answer) == ("1 + 1 = 3\nWait", "")
    _, _, turn = told(thinking, ", 2</think>\n", 5)
    assert turn.begun == "<think>\n1 + 1 = 3\nWait, 2\nWait"
    reasoning, answer, turn = told(thinking, ", yes</think>\n2", 5)
    assert (reasoning, answer, turn.begun, turn.finish) == (", yes", "2", None, "stop")

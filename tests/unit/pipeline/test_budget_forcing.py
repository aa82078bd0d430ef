"""The end of thinking is put off, as often as asked, where there is one."""

import pytest

from pipeline.budget_forcing import put_off, waited
from serve.messages import Completion, Message, Request
from serve.reasoning import THOUGHT, join_reasoning


def said(text, finish="stop", tokens=5):
    return Completion(text=text, finish=finish, prompt_tokens=1, completion_tokens=tokens)


def request(key):
    return Request(key=key, messages=(Message(role="user", content="1 + 1 ="),))


@pytest.mark.parametrize(
    ("text", "begun"),
    [
        ("<think>\n1 + 1 = 3\n</think>\nAnswer: 3", "<think>\n1 + 1 = 3\nWait"),
        (join_reasoning("a", "3", THOUGHT), "<|begin_of_thought|>\na\nWait"),
        ("<think>\nforever", None),
        ("Answer: 3", None),
        ("<think>\n\n</think>\nAnswer: 3", None),
    ],
)
def test_what_an_answer_goes_on_from(text, begun):
    assert put_off(text) == begun


def test_answers_go_on_and_count_all_their_tokens():
    asked = []

    def ask(requests):
        asked.append([r.begun for r in requests])
        return {r.key: said(f", no: {len(asked)}\n</think>\nAnswer: 2") for r in requests}

    first = {
        "a": said("<think>\n1 + 1 = 3\n</think>\nAnswer: 3"),
        "b": said("<think>\n1 + 1", finish="length"),
        "c": said("Answer: 3"),
    }
    found = waited([request(key) for key in first], first, 2, ask)
    assert asked == [
        ["<think>\n1 + 1 = 3\nWait"],
        ["<think>\n1 + 1 = 3\nWait, no: 1\nWait"],
    ]
    assert found["a"].text == ("<think>\n1 + 1 = 3\nWait, no: 1\nWait, no: 2\n</think>\nAnswer: 2")
    assert found["a"].completion_tokens == 15
    assert (found["b"], found["c"]) == (first["b"], first["c"])


def test_without_waits_nothing_is_asked():
    answers = {"a": said("<think>\nx\n</think>\nAnswer: 2")}
    assert waited([request("a")], answers, 0, None) == answers

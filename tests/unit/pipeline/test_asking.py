"""What is asked: the text that questions share is marked, whichever of them are still missing."""

from pipeline.asking import with_openings
from serve.messages import Message, Request


def request(system: str, question: str) -> Request:
    turns = (Message(role="system", content=system), Message(role="user", content=question))
    return Request(key=question, messages=turns)


def test_the_opening_is_what_questions_with_the_same_leading_messages_share():
    asked = [
        request("sums", "What is 1 + 2?"),
        request("sums", "What is 14 + 2?"),
        request("roots", "Find the root of 4"),
        request("roots", "Solve"),
    ]
    marked = with_openings(asked)
    assert [r.opening for r in marked] == ["What is 1", "What is 1", "", ""]
    assert [r.messages for r in marked] == [r.messages for r in asked]

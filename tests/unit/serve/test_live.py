"""An engine that cannot batch its streams, asked by several: what one meets, the others do not."""

import pytest

from serve.conversations import Ask, Conversations
from serve.engines.blocks import BlockEngine
from serve.errors import EngineError
from serve.live import Streams
from serve.messages import Message, Request, Sampling
from serve.template import ChatTemplate

CONTEXT = 40
OPENED = ChatTemplate("{{ messages[0].content }}<think>")


class Fail(Exception):
    """As onnxruntime's, which are of no class that Python knows."""


class Counting:
    """Rows that write 1, 2, 3 …; `fails_at` raises there, as a runtime that is out of memory."""

    def __init__(self, fails_at):
        self.fails_at = fails_at

    def draw(self, samplings, position):
        if position == self.fails_at:
            raise Fail("no memory")
        return [position + 1] * len(samplings)

    def append(self, tokens):
        pass

    def keep(self, rows):
        return False


class Letters(BlockEngine):
    """A token a letter."""

    def __init__(self, template=None):
        super().__init__("letters", 1, [0], CONTEXT)
        self.template = template

    def prompt_ids(self, messages):
        text = self.template.render(messages) if self.template else messages[-1].content
        return self._encode(text)

    def logits(self, ids):
        raise NotImplementedError

    def close(self):
        pass

    def _rows(self, prompts, answer_tokens):
        return Counting(2 if prompts[0][0] == ord("!") else -1)

    def _encode(self, text):
        return list(text.encode())

    def _decode(self, ids):
        return "".join(map(str, ids))


def request(text, tokens=3):
    return Request(key=text, messages=(), begun=text, sampling=Sampling(max_tokens=tokens))


def asked(text, **options):
    return Ask(messages=(Message(role="user", content=text),), **options)


def said(talks):
    found = {}
    while talks.busy():
        for key, reply in talks.step():
            found.setdefault(key, []).append(reply)
    return found


def test_a_prompt_is_counted_and_refused_when_it_is_admitted():
    live = Streams(Letters(), 2)
    assert live.context_tokens == CONTEXT
    assert live.admit("x", request("12345")) == 5
    with pytest.raises(EngineError, match="prompt of 40 tokens does not fit 40 tokens"):
        live.admit("y", request("a" * CONTEXT))
    with pytest.raises(EngineError, match="an empty prompt cannot be answered"):
        live.admit("z", request(""))
    assert live.free() == 1


def test_a_stream_that_fails_ends_alone():
    talks = Conversations(Streams(Letters(), 2))
    talks.ask("x", asked("ok", max_tokens=4))
    talks.ask("y", asked("!", max_tokens=4))
    found = said(talks)
    assert "".join(reply.content for reply in found["x"]) == "1234"
    assert (found["y"][-1].error, found["y"][-1].refused) == ("letters: no memory", False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a" * CONTEXT, "prompt of 40 tokens does not fit 40 tokens (letters, request x)"),
        ("\ud800", "the text is not Unicode: "),
        ("two users", "chat template of template fails: roles must alternate"),
    ],
)
def test_what_is_wrong_with_one_question_is_its_own_affair(text, reason):
    source = (
        "{% if messages[0].content == 'two users' %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ messages[0].content }}"
    )
    talks = Conversations(Streams(Letters(ChatTemplate(source)), 2))
    talks.ask("x", asked(text))
    talks.ask("y", asked("ok", max_tokens=2))
    found = said(talks)
    assert found["x"][-1].error.startswith(reason)
    assert found["x"][-1].refused
    assert "".join(reply.content for reply in found["y"]) == "12"


def test_forced_words_that_fill_the_context_end_the_answer():
    """31 of the question, 2 written, and the closing tag goes beyond 40."""
    talks = Conversations(Streams(Letters(OPENED), 1))
    talks.ask("x", asked("a" * 24, reasoning_budget=2))
    replies = said(talks)["x"]
    assert "".join(reply.reasoning for reply in replies) == "12"
    assert replies[-1].finish == "length"


def test_answers_of_a_block_are_told_as_they_end():
    engine = Letters()
    engine.block = 2
    asked = engine.generate([request("aa", tokens=3), request("bb", tokens=1)])
    assert next(asked)[0] == "bb"
    assert [key for key, _ in asked] == ["aa"]

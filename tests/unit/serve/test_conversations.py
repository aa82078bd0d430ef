"""Who is admitted, who waits and who leaves: the loop over a model that answers in set words."""

from dataclasses import dataclass, field

from serve.conversations import Ask, Conversations
from serve.errors import EngineError
from serve.messages import Chunk, Message

CONTEXT = 40


@dataclass
class Scripted:
    """Says one character a step: a live model without a model."""

    words: str
    slots: int = 2
    name: str = "scripted"
    context_tokens: int = CONTEXT
    requests: list = field(default_factory=list)
    talks: dict = field(default_factory=dict)

    def free(self):
        return self.slots - len(self.talks)

    def admit(self, key, request):
        if len(request.begun) >= CONTEXT:
            raise EngineError("too long")
        self.requests.append(request)
        script = self.words.removeprefix(request.begun) if request.begun else self.words
        self.talks[key] = [script, request.sampling.max_tokens]
        return 10

    def cancel(self, key):
        self.talks.pop(key, None)

    def step(self):
        found = []
        for key, (script, left) in list(self.talks.items()):
            finish = "stop" if len(script) == 1 else "length" if left == 1 else None
            found.append((key, Chunk(text=script[0], tokens=1, finish=finish)))
            self.talks[key] = [script[1:], left - 1]
            if finish:
                del self.talks[key]
        return found

    def prompt_text(self, messages):
        return "".join(m.content for m in messages)


def asked(text="2 + 2", **options):
    return Ask(messages=(Message(role="user", content=text),), **options)


def said(talks):
    """All replies of everyone until nobody is busy."""
    found = {}
    while talks.busy():
        for key, reply in talks.step():
            found.setdefault(key, []).append(reply)
    return found


def whole(replies):
    return "".join(r.reasoning for r in replies), "".join(r.content for r in replies)


def test_two_are_answered_and_the_third_waits_for_a_slot():
    talks = Conversations(Scripted("<think>a</think>4"))
    for key in "xyz":
        talks.ask(key, asked())
    first = talks.step()
    assert {key for key, _ in first} == {"x", "y"}
    assert [reply.prompt_tokens for _, reply in first[:2]] == [10, 10]
    found = said(talks)
    assert whole(found["z"]) == ("a", "4")
    assert found["z"][-1].finish == "stop"


def test_who_leaves_frees_the_slot_and_who_waits_can_leave_too():
    model = Scripted("long answer")
    talks = Conversations(model)
    for key in "wxyz":
        talks.ask(key, asked())
    talks.step()
    talks.cancel("w")
    talks.cancel("z")
    assert set(model.talks) == {"x"}
    assert set(said(talks)) == {"x", "y"}


def test_an_answer_longer_than_the_context_leaves_is_refused_before_it_begins():
    model = Scripted("a")
    talks = Conversations(model)
    talks.ask("x", asked(max_tokens=31))
    ((_, reply),) = talks.step()
    assert reply.error == "prompt of 10 tokens and answer of 31 exceed 40 tokens"
    assert reply.refused
    assert not talks.busy()
    assert model.free() == 2


def test_forced_words_are_read_and_the_limit_counts_what_was_written():
    model = Scripted("<think>abc</think>4")
    talks = Conversations(model)
    talks.ask("x", asked(max_tokens=30, reasoning_budget=2))
    replies = said(talks)["x"]
    assert model.requests[1].begun == "<think>a\n</think>\n"
    assert model.requests[1].sampling.max_tokens == 30 - 8
    assert (model.requests[0].sampling.seed, model.requests[1].sampling.seed) == (0, 1)
    assert whole(replies)[0] == "a"


class Hasty(Scripted):
    """Several characters a step, as with a draft."""

    def step(self):
        return [told for _ in range(3) for told in super(Hasty, self).step()]


def test_what_a_step_said_beyond_the_budget_is_forgotten():
    model = Hasty("<think>abcdefghi</think>4")
    talks = Conversations(model)
    talks.ask("x", asked(max_tokens=30, reasoning_budget=4))
    replies = said(talks)["x"]
    one = Conversations(Scripted("<think>abcdefghi</think>4"))
    one.ask("x", asked(max_tokens=30, reasoning_budget=4))
    assert whole(replies) == whole(said(one)["x"])
    assert whole(replies)[0] == "abc"


def test_waits_end_with_the_tokens():
    model = Scripted("<think>a</think>4")
    talks = Conversations(model)
    talks.ask("x", asked(max_tokens=17, waits=1))
    replies = said(talks)["x"]
    assert whole(replies) == ("a\nWait<", "")
    assert replies[-1].finish == "length"


def test_a_plain_prompt_is_not_taken_apart():
    talks = Conversations(Scripted("<think>a</think>4"))
    talks.ask("x", Ask(begun="2 + 2 ="))
    assert whole(said(talks)["x"]) == ("", "<think>a</think>4")

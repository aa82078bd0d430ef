"""The rate that a question's timings tell."""

import asyncio
from itertools import count
from types import SimpleNamespace

import pytest

from serve import talk
from serve.conversations import Ask, Reply
from serve.talk import Talk


class Telling:
    """A model that says `replies` at once."""

    def __init__(self, replies):
        self.replies = replies

    def ask(self, key, ask, tell):
        for reply in self.replies:
            tell(reply)


def timings(monkeypatch, *replies):
    """Of a question that is sent at 10 s, and whose pieces are heard a second apart from then."""
    clock = count(10.0)
    monkeypatch.setattr(talk, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    async def heard():
        asked = Talk(Telling(replies), Ask(begun="x"))
        for _ in replies:
            await asked.next()
        return asked.timings()

    return asyncio.run(heard())


@pytest.mark.parametrize(
    ("pieces", "first_s", "total_s", "rate"),
    [
        ([1, 4, 6], 2.0, 4.0, 5.0),
        ([5, 4, 6], 2.0, 4.0, 5.0),  # a guessed opening took no time of its own
        ([9], 2.0, 2.0, 0.0),
    ],
)
def test_the_rate_is_that_of_the_tokens_after_the_first_piece(
    monkeypatch, pieces, first_s, total_s, rate
):
    replies = [Reply(tokens=tokens) for tokens in pieces]
    found = timings(monkeypatch, Reply(prompt_tokens=30), *replies)
    assert found == {"first_token_s": first_s, "total_s": total_s, "tokens_per_s": rate}

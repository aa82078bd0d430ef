"""Which pieces wait and which do not, on a clock of its own."""

import random

import pytest

from serve.conversations import Reply
from serve.gathered import TELL_EVERY_S, Gathered


class Clock:
    def __init__(self):
        self.s = 100.0

    def __call__(self):
        return self.s


@pytest.fixture
def clock():
    return Clock()


def word(text="x", **fields):
    return Reply(content=text, tokens=1, **fields)


def test_first_tokens_first_words_and_last_pieces_go_at_once(clock):
    gathered = Gathered(clock)
    silent = Reply(tokens=1)
    assert gathered.add([("a", Reply(prompt_tokens=9))]) == [("a", Reply(prompt_tokens=9))]
    assert gathered.add([("a", silent)]) == [("a", silent)]
    assert gathered.add([("a", silent)]) == []
    assert gathered.add([("a", word("1"))]) == [("a", Reply(content="1", tokens=2))]
    assert gathered.add([("a", word("2"))]) == []
    end = word("3", finish="stop")
    assert gathered.add([("a", end)]) == [("a", Reply(content="23", tokens=2, finish="stop"))]


def test_what_waits_goes_with_the_first_step_after_its_time(clock):
    gathered = Gathered(clock)
    gathered.add([("a", word()), ("b", word())])
    clock.s += TELL_EVERY_S / 2
    assert gathered.add([("a", word("1")), ("b", word("2"))]) == []
    clock.s += TELL_EVERY_S
    assert gathered.add([("a", word("3"))]) == [
        ("a", Reply(content="13", tokens=2)),
        ("b", Reply(content="2", tokens=1)),
    ]
    clock.s += TELL_EVERY_S
    assert gathered.add([]) == []


def test_a_newcomer_s_first_word_takes_the_others_along(clock):
    gathered = Gathered(clock)
    gathered.add([("a", word())])
    assert gathered.add([("a", word("1"))]) == []
    assert gathered.add([("a", word("2")), ("b", word("3"))]) == [
        ("a", Reply(content="12", tokens=2)),
        ("b", Reply(content="3", tokens=1)),
    ]


def test_an_asker_who_left_is_told_nothing_and_may_come_again(clock):
    gathered = Gathered(clock)
    gathered.add([("a", word())])
    assert gathered.add([("a", word("1"))]) == []
    gathered.forget("a")
    clock.s += TELL_EVERY_S
    assert gathered.add([]) == []
    assert gathered.add([("a", word("2"))]) == [("a", word("2"))]


def test_reasoning_counts_and_an_error_keeps_what_was_said(clock):
    gathered = Gathered(clock)
    gathered.add([("a", Reply(reasoning="r", tokens=1, reasoning_tokens=1))])
    assert gathered.add([("a", Reply(reasoning="s", tokens=1, reasoning_tokens=2))]) == []
    failed = gathered.add([("a", Reply(error="the model fell over"))])
    assert failed == [("a", Reply(reasoning="s", tokens=1, error="the model fell over"))]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_doubled_or_reordered(clock, seed):
    draw, gathered = random.Random(seed), Gathered(clock)
    said = {key: [f"{key}{i} " for i in range(draw.randint(1, 40))] for key in "abcde"}
    left, heard = {key: list(words) for key, words in said.items()}, dict.fromkeys(said, "")
    counted, pieces = dict.fromkeys(said, 0), 0
    while left:
        clock.s += draw.random() * TELL_EVERY_S
        step = []
        for key in [key for key in left if draw.random() < 0.7]:
            text = left[key].pop(0)
            step.append((key, word(text, finish=None if left[key] else "stop")))
            if not left[key]:
                del left[key]
        for key, reply in gathered.add(step):
            heard[key] += reply.content
            counted[key] += reply.tokens
            pieces += 1
    assert heard == {key: "".join(words) for key, words in said.items()}
    assert counted == {key: len(words) for key, words in said.items()}
    assert pieces < sum(counted.values())

"""Who has just come is answered alone up to the first words, and holds nobody up for longer."""

from itertools import pairwise

import pytest

from serve.engines.llama_live import ALONE_ROWS, FIRST_TOKENS, READ_BESIDE_TOKENS, load_live
from serve.engines.llama_native import DECODE_BATCH_TOKENS
from serve.engines.openings import OPENING_TOKENS
from serve.messages import Message, Request, Sampling
from serve.models import resolve_model
from tests.e2e.serving import STUDENT, apart

BASE = resolve_model(STUDENT.model, STUDENT.sha256)
SHORT, LONG = "One, two,", "one, two, " * 60


def written(prompt, steps):
    """Tokens of two old answers and of one of `prompt` that joins them, after each of `steps`."""
    live = load_live(BASE, 3, 512, 1)

    def admit(key, text):
        sampling = Sampling(max_tokens=64, temperature=0.0, seed=0)
        live.admit(key, Request(key=key, messages=(), sampling=sampling, begun=text))

    def tokens():
        return tuple(len(live._talks[key].answer.ids) for key in ("a", "b", "new"))

    for key in ("a", "b"):
        admit(key, SHORT + key)
    while min(len(talk.answer.ids) for talk in live._talks.values()) < 10:
        live.step()
    admit("new", prompt)
    counts = [tokens()]
    for _ in range(steps):
        live.step()
        counts.append(tokens())
    live.close()
    # Of each step, how many tokens it brought to whom.
    return [tuple(now - then for then, now in zip(*two, strict=True)) for two in pairwise(counts)]


def rows_of_two_long_prompts():
    """How many rows the steps have in which slots 0 and 2 read long prompts beside a full 1."""
    live = load_live(BASE, 8, 1024, 1)
    sampling = Sampling(max_tokens=2, temperature=0.0, seed=0)
    rows, decode = [], live._model.decode

    def counted(batch):
        rows.append(len(batch))
        decode(batch)

    live._model.decode = counted
    for text in ("a", "b", "c"):
        live.admit(text, Request(key=text, messages=(), sampling=sampling, begun=text * 3))
    while live._talks:
        live.step()
    slots = {}
    for text in ("a", "c"):
        begun = text * 3 + LONG * 2
        live.admit(text, Request(key=text, messages=(), sampling=sampling, begun=begun))
        slots[text] = live._talks[text].slot
    del rows[:]
    while live._talks:
        live.step()
    live.close()
    return slots, rows


def test_prompts_that_are_read_together_leave_room_for_the_rows_between_them():
    slots, rows = apart(rows_of_two_long_prompts)
    assert slots == {"a": 0, "c": 2}
    # 504 of the prompts and one of the slot between them.
    assert rows[0] == DECODE_BATCH_TOKENS - 8 + 1


def test_a_newcomer_has_its_first_tokens_alone_and_then_its_turn_among_all():
    alone, together = [(0, 0, 1)] * FIRST_TOKENS, [(1, 1, 1)] * 3
    assert apart(written, SHORT, FIRST_TOKENS + 3) == alone + together


def test_a_newcomer_who_reads_long_lets_the_others_speak_in_between():
    steps_alone = -(-ALONE_ROWS // READ_BESIDE_TOKENS)
    assert steps_alone == 2
    # 64 tokens are read in each, in the third beside the two who speak.
    assert apart(written, LONG, 5)[:3] == [(0, 0, 0), (0, 0, 0), (1, 1, 0)]


def slots_of_a_step(forgets):
    """Which of three slots a step computes once the middle one's answer was given up."""
    live = load_live(BASE, 3, 256, 1)
    live._model.forgets = lambda: forgets
    sampling = Sampling(max_tokens=64, temperature=0.0, seed=0)
    for key in "abc":
        live.admit(key, Request(key=key, messages=(), sampling=sampling, begun=SHORT + key))
    while min(len(talk.answer.ids) for talk in live._talks.values()) < FIRST_TOKENS + 2:
        live.step()
    live.cancel(next(key for key, talk in live._talks.items() if talk.slot == 1))
    slots, decode = set(), live._model.decode

    def seen(batch):
        slots.update(row.sequence for row in batch)
        decode(batch)

    live._model.decode = seen
    live.step()
    live.close()
    return sorted(slots)


def test_rows_between_those_who_speak_are_filled_where_they_can_be_taken_back():
    assert apart(slots_of_a_step, True) == [0, 1, 2]
    assert apart(slots_of_a_step, False) == [0, 2]


# The likeliest token of every place leads by 0.7 nats or more, so rounding cannot turn it.
WORDS = "Repeat: one, two, three, four, five, six, seven, eight, nine, ten."
DIGITS = "Repeat after me: 1, 2, 3, 4, 5, 6, 7, 8, 9."
CHATS = (WORDS, WORDS, WORDS, DIGITS, DIGITS, DIGITS)


def chats_in_turn(guesses="right", max_tokens=16, stop=(), temperature=0.0):
    """(text, steps) of each of CHATS. `guesses` of how they begin: none, the engine's own (right),
    those with a wrong fourth token (partly), its own where none can be taken back (fixed)."""
    live = load_live(BASE, 2, 256, 1)
    right = live._openings.guess
    if guesses == "none":
        live._openings.guess = list
    elif guesses == "partly":
        live._openings.guess = lambda: [t + (n == 3) for n, t in enumerate(right())]
    elif guesses == "fixed":
        live._model.forgets = lambda: False
    found = []
    for question in CHATS:
        messages = (Message(role="user", content=question),)
        sampling = Sampling(max_tokens=max_tokens, stop=stop, temperature=temperature)
        live.admit("a", Request(key="a", messages=messages, sampling=sampling))
        text, steps = "", 0
        while live._talks:
            steps += 1
            text += "".join(chunk.text for _, chunk in live.step())
        found.append((text, steps))
    live.close()
    return found


@pytest.mark.parametrize(
    ("guesses", "saved"), [("right", OPENING_TOKENS), ("partly", 3), ("fixed", 0)]
)
def test_a_guessed_opening_changes_no_word_and_saves_its_steps(guesses, saved):
    alone, helped = apart(chats_in_turn, "none"), apart(chats_in_turn, guesses)
    assert [text for text, _ in helped] == [text for text, _ in alone]
    assert [steps for _, steps in alone] == [16] * 6
    # The first question of another kind begins as no guess says.
    assert [steps for _, steps in helped] == [16, 16, 16 - saved] * 2


def test_no_more_is_guessed_than_may_be_said():
    alone, helped = apart(chats_in_turn, "none", 9), apart(chats_in_turn, "right", 9)
    assert [text for text, _ in helped] == [text for text, _ in alone]
    assert [steps for _, steps in helped] == [9, 9, 1] * 2


def test_a_stop_word_within_a_guess_ends_the_answer():
    # Five tokens: "One, two," and the one that spells the stop.
    stopped = apart(chats_in_turn, "right", 16, (" three",))
    assert [text for text, _ in stopped[:3]] == ["One, two,"] * 3
    assert [steps for _, steps in stopped[:3]] == [5, 5, 1]


def test_nothing_is_guessed_of_an_answer_that_is_drawn():
    drawn = apart(chats_in_turn, "right", 16, (), 0.01)
    assert [steps for _, steps in drawn] == [16] * 6
    assert drawn[1] == drawn[2]

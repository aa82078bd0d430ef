"""How answers begin is guessed from the last two, and only where they agree."""

from serve.engines.openings import OPENING_TOKENS, Openings

TAG = [27, 9001, 29, 198]
EIGHT = [*TAG, 5, 6, 7, 8]


def after(*answers):
    """What is guessed after answers that were told token by token, and whose end came last."""
    openings = Openings()
    for ids in answers:
        for count in range(1, len(ids) + 1):
            openings.note(ids[:count], over=False)
        openings.note(ids, over=True)
    return openings.guess()


def test_nothing_is_guessed_before_two_answers():
    assert after() == after(EIGHT) == after([*EIGHT, 9]) == []


def test_what_the_last_two_share_is_the_guess():
    assert after([*TAG, 5, 1, 1, 1, 1], [*EIGHT, 9], [*TAG, 2, 6, 7, 8]) == TAG
    assert after(EIGHT, EIGHT, [1, *EIGHT[1:]]) == []
    assert after([*EIGHT, 1], [*EIGHT, 2]) == EIGHT
    assert len(EIGHT) == OPENING_TOKENS


def test_short_answers_say_how_they_began_too():
    assert after(EIGHT, EIGHT, [5, 6], [5, 7]) == [5]
    assert after(EIGHT, EIGHT, [], [5]) == []

"""How answers begin is guessed from the last two, and only where they agree."""

from serve.engines.openings import OPENING_TOKENS, Openings

TAG = [27, 9001, 29, 198]
EIGHT = [*TAG, 5, 6, 7, 8]


def test_nothing_is_guessed_before_two_answers():
    openings = Openings()
    assert openings.guess() == []
    openings.note(EIGHT)
    assert openings.guess() == []


def test_what_the_last_two_share_is_the_guess():
    openings = Openings()
    for ids in (EIGHT, [*TAG, 5, 1, 1, 1], [*TAG, 2, 6, 7, 8]):
        openings.note(ids)
    assert openings.guess() == TAG
    openings.note([1, *EIGHT[1:]])
    assert openings.guess() == []


def test_an_answer_counts_once_when_it_has_so_many_tokens():
    openings = Openings()
    for count in range(1, OPENING_TOKENS + 3):
        openings.note(range(count))
    assert openings.guess() == []
    openings.note(range(OPENING_TOKENS))
    assert openings.guess() == list(range(OPENING_TOKENS))

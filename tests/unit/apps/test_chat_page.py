"""What the page asks the verifier about an answer."""

from pathlib import Path

import pytest

from apps.chat_page import Page
from apps.conversation import Said


class Verifier:
    def __init__(self):
        self.asked = []

    def passed(self, problem, text, cut):
        self.asked.append((text, cut))
        return not cut


@pytest.mark.parametrize(
    ("finish", "cut", "verdict"), [("stop", False, "· ✓"), ("length", True, "· ✗ right: 9")]
)
def test_an_answer_that_was_cut_is_told_to_the_verifier(finish, cut, verdict):
    verifier = Verifier()
    page = Page(Path(), None, verifier)
    said = Said(reasoning="6 + 3 = 9", answer="Answer: 9", tokens=9, finish=finish)
    assert page._verdict({"answer": "9"}, said) == verdict
    assert verifier.asked == [("<think>\n6 + 3 = 9\n</think>\nAnswer: 9", cut)]

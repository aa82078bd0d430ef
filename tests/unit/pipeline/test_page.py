"""What the page shows of practice, whatever the method, and of what was measured."""

from pipeline.page import _divergence_tokens
from pipeline.page_practice import practice_section


def text_of(rows):
    return "".join(practice_section(rows, [], None))


def test_practice_by_exact_shows_its_updates():
    rows = [
        {"step": 1, "loss_nats": 0.5, "skipped_updates": 0},
        {"step": 2, "loss_nats": None, "skipped_updates": 1},
        {"step": 3, "loss_nats": 0.4, "skipped_updates": 1},
    ]
    shown = text_of(rows)
    assert "<svg" in shown
    assert "Updates skipped as broken: 1." in shown


def test_tokens_that_were_measured_are_told_not_those_that_were_wished():
    rows = [
        {"proof": {"divergence": None}},
        {"proof": {"divergence": {"all": {"tokens": 2817}}}},
    ]
    assert _divergence_tokens({"rows": rows}) == 2817
    assert _divergence_tokens({"rows": rows[:1]}) == 0

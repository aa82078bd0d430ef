"""Which lines stay, asked of a model whose belief is known exactly."""

import logging

import pytest

from pipeline.progress import Progress
from pipeline.recipe import StudentOptions
from pipeline.run import Context
from pipeline.steps import Measure, measured_steps
from serve.messages import Grade, TokenScores
from tests.unit.pipeline.test_views import trace

STUDENT = StudentOptions(model="path:none", system="Think.")


class Believer:
    """Two tokens an answer: everything before it, and itself, likelier with either hint there."""

    def __init__(self) -> None:
        self.asked = 0

    def grade(self, requests, top):
        self.asked += len(requests)
        return [self._grade(r.begun) for r in requests]

    def _grade(self, text):
        cut = text.rindex("Answer: ") + len("Answer:")
        nats = -5.0 + 2.0 * ("twice" in text) + 1.0 * ("hint" in text)
        scores = TokenScores(ids=(1, 2), byte_offsets=(0, cut), logprobs_nats=(-9.0, nats))
        return Grade(
            scores=scores,
            top_ids=((), (), ()),
            top_logprobs_nats=((), (), ()),
            end_nats=0.0,
            read_tokens=2,
            text_bytes=len(text),
        )

    def close(self):
        pass


@pytest.fixture
def engine():
    return Believer()


def steps_of(engine, path, threshold=0.1, texts=None):
    texts = texts or ["filler\ntwice: one\nhint\ntwice: again\nAnswer: 522", "hint\nAnswer: 522"]
    traces = [trace(f"k{n}", text) for n, text in enumerate(texts)]
    context = Context(seed=1, progress=Progress(), log=logging.getLogger("test"))
    measure = Measure(lambda: engine, "believer", STUDENT, threshold)
    found = measured_steps(traces, measure, path, context)
    return [found[t.key] for t in traces]


def test_of_two_lines_that_say_the_same_the_later_stays(engine, tmp_path):
    first, second = steps_of(engine, tmp_path / "steps.jsonl")
    assert first.cost_nats == (0.0, 0.0, 1.0, 2.0)
    assert first.kept == (False, False, True, True)
    assert first.reasoning == "hint\ntwice: again"
    assert second.reasoning == "hint"


def test_a_higher_threshold_cuts_more(engine, tmp_path):
    first, _ = steps_of(engine, tmp_path / "steps.jsonl", threshold=1.5)
    assert first.reasoning == "twice: again"


def test_what_was_measured_is_not_asked_again_unless_the_threshold_changed(engine, tmp_path):
    steps_of(engine, tmp_path / "steps.jsonl")
    asked = engine.asked
    assert asked == 2 + 4 + 1
    steps_of(engine, tmp_path / "steps.jsonl")
    assert engine.asked == asked
    steps_of(engine, tmp_path / "steps.jsonl", threshold=1.5)
    assert engine.asked == 2 * asked


def test_another_text_under_the_same_key_is_measured_anew(engine, tmp_path):
    path = tmp_path / "steps.jsonl"
    (first,) = steps_of(engine, path, texts=["hint\nAnswer: 522"])
    asked = engine.asked
    (second,) = steps_of(engine, path, texts=["other\nhint\nAnswer: 522"])
    assert engine.asked > asked
    assert (first.lines, second.lines) == (("hint",), ("other", "hint"))

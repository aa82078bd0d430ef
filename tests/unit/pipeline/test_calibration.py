"""What quantized files are fitted on: the student's own answers first, then its traces."""

import pytest

from pipeline import calibration
from pipeline.attempts import Attempt, own_answers
from pipeline.calibration import OWN_ANSWERS, calibration_sequences
from pipeline.recipe import StudentOptions
from pipeline.records import Example, Problem, Verdict
from pipeline.store import write_records
from serve.messages import Completion

STUDENT = StudentOptions(model="path:none", system="Think.")


@pytest.fixture(autouse=True)
def _words(monkeypatch):
    """A token a word, and no tokenizer on disk."""
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: None)
    monkeypatch.setattr(calibration, "rendered_ids", lambda e, _: e.completion.split())


def example(key, words):
    return Example(key=key, family="f", prompt=(), completion=words)


def attempt(key, text, passed, finish="stop"):
    return Attempt(
        key=key,
        block=0,
        problem=Problem(question=f"{key}?", answer="2", family="f"),
        completion=Completion(text=text, finish=finish, prompt_tokens=1, completion_tokens=1),
        verdict=Verdict(passed=passed, reason="wrong", extracted="2", verifier="v"),
    )


def test_own_answers_are_all_that_ended_right_or_wrong():
    attempts = [
        attempt("b", "two", False),
        attempt("a", "one", True),
        attempt("c", "cut", False, finish="length"),
    ]
    found = own_answers(attempts, STUDENT)
    assert [(e.key, e.completion) for e in found] == [("a", "one"), ("b", "two")]
    assert [turn["content"] for turn in found[0].prompt] == ["Think.", "a?"]


def test_own_answers_come_first_and_traces_fill_up(tmp_path):
    write_records(tmp_path / "examples.jsonl", [example("a", "t1 t1"), example("b", "t2 t2")])
    assert calibration_sequences(tmp_path, 3) == [["t1", "t1"], ["t2", "t2"]]
    write_records(tmp_path / OWN_ANSWERS, [example("z", "o2 o2"), example("y", "o1 o1")])
    assert calibration_sequences(tmp_path, 3) == [["o1", "o1"], ["o2", "o2"]]
    assert calibration_sequences(tmp_path, 5) == [["o1", "o1"], ["o2", "o2"], ["t1", "t1"]]
    assert len(calibration_sequences(tmp_path, 99)) == 4

"""What is asked of a rung beyond its evaluation, and how that is judged. The rung is a script."""

from contextlib import closing
from types import SimpleNamespace

import pytest

from pipeline import transfer
from pipeline.examine import Rung
from pipeline.kept_answers import KeptAnswers
from pipeline.progress import Progress
from pipeline.recipe import TeacherOptions
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.tasks.judge import Judge
from pipeline.transfer_questions import Question
from serve.messages import Completion, Message, Request

PROBLEM = Problem(question="40 + 2 =", answer="42", family="sums", scorer="math")
TURNS = (Message(role="user", content="40 + 2 ="),)


def completion(text):
    return Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=1)


def asked_of(begun, said, monkeypatch, context_tokens=0):
    """The row of one question, whose answer was begun, and what `ask` was told."""
    request = Request(key="k", messages=TURNS, begun=begun)
    questions = SimpleNamespace(
        of=lambda *_: [Question("forced", "another's", 0, PROBLEM, request)],
        own=lambda _: [],
        options=SimpleNamespace(waits=0),
    )
    told = []

    def ask(*arguments):
        told.append(arguments)
        return {"k": completion(said)}

    monkeypatch.setattr(transfer, "ask", ask)
    rung = Rung("r", "i", None, lambda: None, lambda _: TURNS, context_tokens=context_tokens)
    with Judge() as judge:
        (row,) = transfer.ask_rung(rung, questions, None, judge, Context(1, Progress()))
    return row, told


def test_a_box_in_anothers_reasoning_is_not_the_forced_answer(monkeypatch):
    begun = "The other had \\boxed{7}.\nAnswer:"
    row, _ = asked_of(begun, " 42", monkeypatch)
    assert row.verdict.passed is True
    assert row.completion.text == f"{begun} 42"
    assert asked_of(begun, " 7", monkeypatch)[0].verdict.passed is False


@pytest.mark.parametrize("said", [" \\boxed{42}", " 42\n</answer>", " 42."])
def test_a_forced_answer_is_read_in_any_form(said, monkeypatch):
    row, _ = asked_of("<think>\n40 + 2\n</think>\n<answer>\nAnswer:", said, monkeypatch)
    assert row.verdict.passed is True


def test_answers_that_a_larger_context_has_room_for_are_asked_again(monkeypatch):
    _, (told,) = asked_of("", "42", monkeypatch, context_tokens=4096)
    assert told[-1] == 4096


@pytest.mark.parametrize(
    ("text", "lead"), [("<think>\n1\n</think>\n42", "<think>\nI count.\n</think>\n"), ("42", "")]
)
def test_a_server_is_asked_whether_it_goes_on_in_its_own_form(text, lead, monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(transfer, "goes_on", lambda *given: found.append(given) or False)
    http = TeacherOptions(engine="http", model="m", base_url="http://localhost:1", system="s")
    request = Request(key="k", messages=TURNS, begun="4")
    questions = SimpleNamespace(
        own=lambda _: [SimpleNamespace(completion=completion(text))],
        forced=lambda _: [Question("forced", "50 %", 0, PROBLEM, request)],
    )
    log = tmp_path / "answers.jsonl"
    rung = Rung("teacher", "i", None, lambda: None, lambda _: TURNS)
    context = Context(1, Progress())
    assert transfer._goes_on(rung, questions, http, log, context) is False
    assert found == [(http, lead)]
    local = http.model_copy(update={"engine": "llama.cpp"})
    assert transfer._goes_on(rung, questions, local, log, context) is True
    student = Rung("SFT student", "i", None, lambda: None, lambda _: TURNS)
    assert transfer._goes_on(student, questions, http, log, context) is True
    assert len(found) == 1
    # What is known already costs no server.
    with closing(KeptAnswers(log)) as kept:
        kept.add("k", completion("2"))
    assert transfer._goes_on(rung, questions, http, log, context) is True
    assert len(found) == 1

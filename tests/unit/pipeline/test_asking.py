"""What is asked: the words that questions share are marked, whichever of them are still missing."""

import logging

from pipeline.asking import ask
from pipeline.batches import openings_of, with_openings
from pipeline.kept_answers import Answer
from pipeline.progress import Progress
from pipeline.run import Context
from pipeline.store import write_records
from serve.messages import Completion, Message, Request


def request(system: str, question: str) -> Request:
    turns = (Message(role="system", content=system), Message(role="user", content=question))
    return Request(key=question, messages=turns)


ASKED = [
    request("sums", "What is 11 + 2?"),
    request("sums", "What is 14 + 2?"),
    request("roots", "Find the root of 4"),
    request("roots", "Solve"),
]
DONE = Completion(text="a", finish="stop", prompt_tokens=1, completion_tokens=1)


class Recorder:
    """Keeps what reaches an engine."""

    name, batch_invariant, block = "recorder", True, 1

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def generate(self, requests):
        self.seen += requests
        return [(r.key, DONE) for r in requests]

    def close(self) -> None:
        pass


def test_the_opening_is_the_whole_words_that_questions_with_the_same_leading_messages_share():
    marked = with_openings(ASKED)
    assert [r.opening for r in marked] == ["What is ", "What is ", "", ""]
    assert [r.messages for r in marked] == [r.messages for r in ASKED]


def test_openings_of_more_than_is_asked_stay_whatever_is_asked():
    openings = openings_of(r.messages for r in ASKED)
    alone = [with_openings([r], openings)[0].opening for r in ASKED]
    assert alone == ["What is ", "What is ", "", ""]


def test_a_resumed_run_asks_what_is_missing_with_the_opening_of_everything(tmp_path):
    log = tmp_path / "answers.jsonl"
    write_records(log, [Answer(key=r.key, completion=DONE) for r in ASKED[1:]])
    engine = Recorder()
    context = Context(seed=0, progress=Progress(), log=logging.getLogger("test"))
    assert ask(lambda: engine, ASKED, log, "x", context) == {r.key: DONE for r in ASKED}
    assert [(r.key, r.opening) for r in engine.seen] == [("What is 11 + 2?", "What is ")]


def test_an_answer_that_the_context_ended_is_asked_again_once_there_is_room(tmp_path):
    log, asked = tmp_path / "answers.jsonl", ASKED[0]
    limit = asked.sampling.max_tokens
    context = Context(seed=0, progress=Progress(), log=logging.getLogger("test"))

    def again(prompt, own, context_tokens):
        cut = Completion(text="a", finish="length", prompt_tokens=prompt, completion_tokens=own)
        write_records(log, [Answer(key=asked.key, completion=cut)])
        engine = Recorder()
        found = ask(lambda: engine, [asked], log, "label", context, context_tokens)
        assert found[asked.key].text == "a"
        return len(engine.seen) == 1

    assert again(60, 40, 128)
    # It filled what there still is, a server's room is its own affair, and a limit is a limit.
    assert not again(60, 40, 100)
    assert not again(60, 40, 0)
    assert not again(60, limit, 100_000)

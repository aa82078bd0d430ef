import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from serve.engines import http as engine_module
from serve.engines.http import load
from serve.errors import CannotDo, EngineError
from serve.messages import Grade, Message, Request, Sampling


@contextmanager
def server(replies: list[tuple[int, dict, dict]]) -> Iterator[tuple[str, list[dict]]]:
    """A real socket that plays `replies` (status, headers, body) in turn, the last one for ever."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append({**body, "authorization": self.headers.get("authorization")})
            status, headers, reply = replies[min(len(seen), len(replies)) - 1]
            raw = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1", seen
    finally:
        listening.shutdown()
        listening.server_close()


def said(text: str, finish: str = "stop") -> dict:
    return {
        "choices": [{"message": {"content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    }


def ask(url: str, count: int = 1, **options):
    requests = [
        Request(
            key=str(i),
            messages=(Message(role="user", content="q"),),
            sampling=Sampling(temperature=0.5, seed=7, max_tokens=9),
        )
        for i in range(count)
    ]
    engine = load(base_url=url, model="m", **options)
    try:
        return dict(engine.generate(requests))
    finally:
        engine.close()


def test_a_request_carries_its_sampling_and_key(monkeypatch):
    monkeypatch.setenv("RETORT_API_KEY", "secret")
    with server([(200, {}, said("Answer: 4"))]) as (url, seen):
        answers = ask(url)
    assert answers["0"].text == "Answer: 4"
    assert answers["0"].completion_tokens == 5
    assert (seen[0]["temperature"], seen[0]["seed"], seen[0]["max_tokens"]) == (0.5, 7, 9)
    assert seen[0]["authorization"] == "Bearer secret"


def test_retry_after_is_obeyed_then_the_answer_arrives(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(engine_module.time, "sleep", waited.append)
    with server([(429, {"retry-after": "3"}, {}), (503, {}, {}), (200, {}, said("x"))]) as (url, _):
        assert ask(url)["0"].text == "x"
    assert waited[0] == 3.0
    assert 1.0 <= waited[1] <= 2.0


def test_six_attempts_and_no_more(monkeypatch):
    monkeypatch.setattr(engine_module.time, "sleep", lambda _s: None)
    with server([(500, {}, {})]) as (url, seen), pytest.raises(EngineError) as caught:
        ask(url)
    assert len(seen) == 6
    assert str(caught.value) == "http:m did not answer in 6 attempts: status 500"
    assert caught.value.exit_code == 5


def test_a_refusal_is_not_retried():
    with server([(401, {}, {"error": "no"})]) as (url, seen), pytest.raises(EngineError):
        ask(url)
    assert len(seen) == 1


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_what_a_server_keeps_apart_as_reasoning_is_put_back(field):
    reply = said("Answer: 4")
    reply["choices"][0]["message"][field] = "2 + 2 = 4"
    with server([(200, {}, reply)]) as (url, _):
        assert ask(url)["0"].text == "<think>\n2 + 2 = 4\n</think>\nAnswer: 4"


def test_an_engine_that_was_idle_for_an_hour_asks_all_the_same():
    with server([(200, {}, said("x"))]) as (url, seen):
        engine = load(base_url=url, model="m")
        engine._last_success_s -= 3600
        turns = (Message(role="user", content="q"),)
        ((_, answer),) = engine.generate([Request(key="a", messages=turns)])
        engine.close()
    assert (answer.text, len(seen)) == ("x", 1)


def test_a_long_answer_has_longer_to_come(monkeypatch):
    given = []

    class Client(httpx.Client):
        def post(self, *arguments, timeout, **options):
            given.append(timeout)
            return super().post(*arguments, **options)

    monkeypatch.setattr(engine_module.httpx, "Client", Client)
    with server([(200, {}, said("x"))]) as (url, _):
        engine = load(base_url=url, model="m")
        for limit in (9, 16_384):
            sampling = Sampling(max_tokens=limit)
            turns = (Message(role="user", content="q"),)
            list(engine.generate([Request(key="a", messages=turns, sampling=sampling)]))
        engine.close()
    assert given == [120.9, 120 + 1638.4]


def test_the_token_budget_stops_the_run():
    with server([(200, {}, said("x"))]) as (url, seen), pytest.raises(EngineError) as caught:
        ask(url, count=50, concurrency=1, token_budget=20)
    assert "token budget spent: 20 of 20 completion tokens" in str(caught.value)
    assert len(seen) == 4


def test_a_cut_answer_says_length():
    with server([(200, {}, said("x", "length"))]) as (url, _):
        assert ask(url)["0"].finish == "length"


def scored(tokens: list[tuple[int, str, float]], **more) -> dict:
    """vLLM's reply: the prompt's own tokens with their log probabilities, one rival each."""
    rows = [
        {
            str(i): {"logprob": nats, "rank": 2, "decoded_token": text},
            "900": {"logprob": -0.2, "rank": 1, "decoded_token": "?"},
        }
        for i, text, nats in tokens
    ]
    return {
        **said(""),
        "prompt_token_ids": [i for i, _, _ in tokens],
        "prompt_logprobs": [None, *rows[1:]],
        **more,
    }


PROMPT = [(1, "<s>", 0.0), (2, "q 12", -1.0), (3, "<turn>", -0.5)]
ANSWER = [(4, "1", -0.75), (5, "2", -2.0), (6, " é", -0.25)]
TURN = [(7, "<end>", -0.125), (8, "\n", 0.0)]


def graded(url: str, text: str = "12 é"):
    engine = load(base_url=url, model="m")
    messages = (Message(role="user", content="q 12"),)
    return engine.grade([Request(key="k", messages=messages, begun=text)], top=5)


def test_a_server_with_prompt_logprobs_grades():
    with server([(200, {}, scored([*PROMPT, *ANSWER, *TURN]))]) as (url, seen):
        (grade,) = graded(url)
    assert seen[0]["messages"][-1] == {"role": "assistant", "content": "12 é"}
    assert (seen[0]["add_generation_prompt"], seen[0]["prompt_logprobs"]) == (False, 5)
    assert grade.scores.ids == (4, 5, 6)
    assert grade.scores.byte_offsets == (0, 1, 2)
    assert grade.scores.logprobs_nats == (-0.75, -2.0, -0.25)
    assert grade.end_nats == -0.125
    assert grade.top_ids == ((900, 4), (900, 5), (900, 6), (7, 900))
    assert grade.read_tokens == 8


def test_a_server_without_them_cannot_grade():
    with server([(200, {}, said("x"))]) as (url, _), pytest.raises(CannotDo) as raised:
        graded(url)
    assert str(raised.value).startswith("http:m cannot score a given text")
    assert raised.value.exit_code == 5


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_unknown_fields_cannot_grade(status):
    request = Request(key="g", messages=(Message(role="user", content="q"),), begun="4")
    with server([(status, {}, {"error": "prompt_logprobs: extra"})]) as (url, seen):
        engine = load(base_url=url, model="m")
        with pytest.raises(CannotDo, match=f"status {status}"):
            engine.grade([request], top=1)
        engine.close()
    assert len(seen) == 1


def test_an_answer_that_is_no_run_of_whole_tokens_is_not_graded():
    joined = [*PROMPT[:2], (9, "<turn>1", -1.0), (5, "2", -1.0), *ANSWER[2:], *TURN]
    with server([(200, {}, scored(joined))]) as (url, _):
        (grade,) = graded(url)
    assert grade == Grade.of_nothing(read_tokens=len(joined))


def test_a_begun_answer_is_sent_as_a_turn_that_is_not_over():
    with server([(200, {}, said("4"))]) as (url, seen):
        engine = load(base_url=url, model="m")
        messages = (Message(role="user", content="q"),)
        list(engine.generate([Request(key="k", messages=messages, begun="2 + 2 =")]))
    assert seen[0]["messages"][-1] == {"role": "assistant", "content": "2 + 2 ="}
    assert (seen[0]["continue_final_message"], seen[0]["add_generation_prompt"]) == (True, False)

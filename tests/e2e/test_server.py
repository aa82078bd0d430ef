"""The server with the real student and the real `openai` client: answers, limits and faults."""

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from serve.__main__ import main
from tests.e2e.serving import LEAD, NAME, served, write_bundle

QUESTION = [{"role": "user", "content": "What is 2 + 2? Explain at length."}]
JSON = {"Content-Type": "application/json"}
LONG = {"model": NAME, "messages": QUESTION, "max_tokens": 400}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    bundle = write_bundle(
        tmp_path_factory.mktemp("bundle"),
        {
            "name": "changed",
            "engine": "llama.cpp",
            "model": "path:x.gguf",
            "sha256": "0" * 64,
            "lead": [],
        },
    )
    (bundle / "x.gguf").write_bytes(b"GGUF")
    with served(bundle, "--slots", "4", "--queue", "4", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as found:
        yield found


def free_again(server):
    return server.wait(lambda: server.asked() == 0)


def test_the_openai_client_streams_what_it_gets_whole(client):
    assert [model.id for model in client.models.list()] == [NAME, "changed"]
    options = {"model": NAME, "messages": QUESTION, "max_tokens": 40}
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 40
    pieces = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == whole.choices[0].message.content
    assert 4 < len(pieces) <= 43  # a fast model says several tokens at once
    assert pieces[-1].usage == whole.usage
    assert pieces[-2].choices[0].finish_reason == "length"
    timings = pieces[-2].model_extra["timings"]
    assert 0 < timings["first_token_s"] < timings["total_s"]
    assert timings["tokens_per_s"] == pytest.approx(
        39 / (timings["total_s"] - timings["first_token_s"]), rel=0.01
    )


def test_an_answer_that_ends_with_its_first_token_is_streamed_too(client):
    options = {"model": NAME, "messages": QUESTION, "max_tokens": 1}
    whole = client.chat.completions.create(**options).choices[0]
    pieces = list(client.chat.completions.create(**options, stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == whole.message.content
    assert pieces[-1].choices[0].finish_reason == whole.finish_reason == "length"


def test_the_model_s_own_turns_stand_before_a_question_without_rules(client):
    def tokens(messages):
        answer = client.chat.completions.create(model=NAME, messages=messages, max_tokens=1)
        return answer.usage.prompt_tokens

    assert tokens(QUESTION) == tokens([*LEAD, *QUESTION])
    assert tokens([{"role": "system", "content": "Be brief."}, *QUESTION]) != tokens(QUESTION)


def test_seeds_repeat_and_stop_words_stop(client):
    options = {"model": NAME, "messages": QUESTION, "max_tokens": 30, "temperature": 1.0}
    said = [
        client.chat.completions.create(**options, seed=seed).choices[0].message.content
        for seed in (7, 7, 8)
    ]
    assert said[0] == said[1] != said[2]
    word = re.search(r"\w{3,}", said[0]).group()
    cut = client.chat.completions.create(**options, seed=7, stop=[word]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (
        said[0].partition(word)[0].rstrip(),
        "stop",
    )


def test_a_plain_prompt_is_continued(client):
    answer = client.completions.create(model=NAME, prompt="1, 2, 3, 4, 5,", max_tokens=8)
    assert answer.choices[0].text.startswith(" 6, 7")
    assert answer.usage.prompt_tokens < 20


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"tools": []}, 422, "tools: Extra inputs are not permitted"),
        ({"temperature": 3}, 422, "temperature: Input should be less than or equal to 2"),
        ({"messages": []}, 422, "messages: List should have at least 1 item"),
        ({"messages": QUESTION * 257}, 422, "messages: List should have at most 256 items"),
        ({"messages": [{"role": "tool", "content": ""}]}, 422, "messages.0.role: Input should be"),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            422,
            "messages.0.content.constrained-str: Input should be a valid string",
        ),
        ({"model": "../x"}, 404, f"no model is called '../x', only: {NAME}, changed"),
        ({"max_tokens": 2048}, 400, "prompt of 36 tokens and answer of 2048 exceed 2048 tokens"),
        ({"messages": [{"role": "user", "content": "a " * 5000}]}, 400, "prompt of 5025 tokens"),
        ({"messages": [{"role": "user", "content": "a" * 2**20}]}, 413, "a body has at most"),
        ({"model": "changed"}, 503, "sha256 of x.gguf is b83633aa"),
    ],
)
def test_a_wrong_question_is_refused_with_its_reason(server, change, status, message):
    with server.client() as client:
        # Not all of these can be written as UTF-8, which httpx does by itself.
        body = json.dumps(LONG | change)
        answer = client.post("/v1/chat/completions", content=body, headers=JSON)
    said = answer.json()["error"]["message"]
    assert (answer.status_code, said[: len(message)]) == (status, message)
    assert "/" not in said.replace("../x", "")
    assert server.health()[1]["models"][NAME] == "ready"


def test_who_comes_after_the_queue_is_full_is_told_when_to_come_again(server):
    async def crowd():
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
            asked = [client.post("/v1/chat/completions", json=LONG) for _ in range(12)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(crowd())
    assert sorted(a.status_code for a in answers) == [200] * 8 + [429] * 4
    refused = [a for a in answers if a.status_code == 429]
    assert {a.headers["retry-after"] for a in refused} == {"5"}


def test_conversations_do_not_cross(server):
    """Each asks for a sequence of its own and gets what it gets alone."""

    def ask(client, first):
        body = {"prompt": f"{first}, {first + 1}, {first + 2}, {first + 3},", "max_tokens": 12}
        return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

    with server.client() as client:
        firsts = [11, 23, 31, 47]
        for _ in range(3):
            with ThreadPoolExecutor(4) as pool:
                texts = list(pool.map(lambda n: ask(client, n), firsts))
            for n, text in zip(firsts, texts, strict=True):
                assert text.startswith(f" {n + 4}, {n + 5}"), (n, text)


def leave(server, moment):
    """Ask for a long answer and hang up: `sent` at once, `midst` after some pieces."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(LONG | {"stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((host, int(port))) as line:
        line.sendall(head + body)
        if moment == "midst":
            read = b""
            while read.count(b"data:") < 4:
                read += line.recv(4096)


@pytest.mark.parametrize("moment", ["sent", "midst"])
def test_who_hangs_up_frees_the_slot_within_a_second(server, moment):
    for _ in range(10):
        leave(server, moment)
        assert free_again(server) < 1.0


def test_who_hangs_up_while_waiting_is_forgotten(server):
    async def crowd():
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            asked = [
                asyncio.create_task(client.post("/v1/chat/completions", json=LONG))
                for _ in range(8)
            ]
            async with asyncio.timeout(60):
                while server.asked() < 8:
                    await asyncio.sleep(0.05)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(crowd())
    assert free_again(server) < 1.0


def test_the_model_stops_writing_for_who_hung_up(tmp_path):
    """One slot: the next one is answered at once, not when the long answer would have ended."""
    with (
        served(write_bundle(tmp_path), "--slots", "1", "--threads", "1") as server,
        server.client() as client,
    ):

        def takes_s(body):
            started_s = time.monotonic()
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            return time.monotonic() - started_s

        whole_s = takes_s(LONG)
        leave(server, "midst")
        assert takes_s(LONG | {"max_tokens": 1}) < whole_s / 2


def test_a_draft_changes_speed_and_no_word(tmp_path):
    twin = json.loads((write_bundle(tmp_path) / "chat.json").read_text())["speakers"][0]
    write_bundle(tmp_path, twin | {"name": "twin"})
    with served(tmp_path, "--draft", NAME) as server, server.client() as client:
        body = LONG | {"max_tokens": 40}
        drafted, alone = (
            client.post("/v1/chat/completions", json=body | {"model": name}).json()
            for name in ("twin", NAME)
        )
        assert drafted["choices"] == alone["choices"]


def test_a_killed_model_turns_health_red_and_comes_back(server):
    restarts = server.model_pid()
    os.kill(restarts, signal.SIGKILL)
    assert server.wait(lambda: server.health()[0] == 503) < 2.0
    assert server.wait(lambda: server.health()[0] == 200) < 30.0
    assert server.model_pid() != restarts
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=LONG | {"max_tokens": 4})
    assert answer.status_code == 200


def test_a_question_whose_model_dies_is_told_so(server):
    def kill():
        server.wait(lambda: server.asked() > 0)
        os.kill(server.model_pid(), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=LONG)
    killer.join()
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "the process of student ended with -9"
    server.wait(lambda: server.health()[0] == 200)


def test_another_name_for_this_machine_is_refused(server):
    with server.client(headers={"Host": "evil.example"}) as client:
        answer = client.get("/v1/models")
    assert answer.status_code == 421


def test_a_key_is_asked_on_every_route_but_health(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    with served(bundle, "--host", "0.0.0.0", "--api-key", "secret") as server:  # noqa: S104
        with server.client() as client:
            assert client.get("/health").status_code == 200
            for route in ("/v1/models", "/metrics", "/openapi.json"):
                assert client.get(route).status_code == 401
        with server.client(headers={"Authorization": "Bearer secrets"}) as client:
            assert client.get("/v1/models").status_code == 401
        with server.client(headers={"Authorization": "Bearer secret"}) as client:
            assert client.get("/v1/models").status_code == 200


def test_an_open_address_without_a_key_is_refused(tmp_path, capsys):
    assert main([str(write_bundle(tmp_path)), "--host", "0.0.0.0"]) == 2  # noqa: S104
    assert capsys.readouterr().err == (
        "error: --host 0.0.0.0 is open to others and needs --api-key\n"
    )


def test_a_file_that_nothing_can_check_is_not_served(tmp_path, capsys):
    bare = {"name": "bare", "engine": "llama.cpp", "model": "hub:a/b", "sha256": None, "lead": []}
    bundle = write_bundle(tmp_path, bare)
    assert main([str(bundle), "--models", "bare"]) == 3
    assert capsys.readouterr().err == (
        "error: bare is not served: chat.json has no sha256 to check its file by\n"
    )
    (tmp_path / "chat.json").write_text(json.dumps({"speakers": [bare]}))
    assert main([str(bundle)]) == 3
    assert capsys.readouterr().err == (
        f"not served, for want of a sha256: bare\nerror: {bundle} holds no model to serve\n"
    )


def test_a_draft_that_the_folder_lacks_is_refused(tmp_path, capsys):
    assert main([str(write_bundle(tmp_path)), "--draft", "tiny"]) == 2
    assert capsys.readouterr().err == (
        f"error: --draft 'tiny' is no GGUF of the folder\nhint: there are '{NAME}'\n"
    )


def test_an_end_lets_answers_finish_and_takes_no_ten_seconds(tmp_path):
    with served(write_bundle(tmp_path / "bundle")) as server, server.client() as client:
        answers = []
        body = LONG | {"max_tokens": 60}
        thread = threading.Thread(
            target=lambda: answers.append(client.post("/v1/chat/completions", json=body))
        )
        thread.start()
        server.wait(lambda: server.asked() == 1)
        server.process.send_signal(signal.SIGTERM)
        started_s = time.monotonic()
        server.process.wait(timeout=10)
        thread.join()
        assert time.monotonic() - started_s < 10
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] == 60


def test_a_model_that_does_not_stay_up_ends_the_server(tmp_path):
    with served(write_bundle(tmp_path / "bundle")) as server:
        for _ in range(2):
            os.kill(server.model_pid(), signal.SIGKILL)
            server.wait(lambda: server.health()[0] == 503, 5)
            server.wait(lambda: server.health()[0] == 200)
        os.kill(server.model_pid(), signal.SIGKILL)
        assert server.process.wait(timeout=10) == 5
        assert server.process.stderr.read() == (
            "error: student does not stay up: the process of student ended with -9\n"
        )


def test_both_files_of_a_bundle_answer_the_same_question_alike(smoke):
    question = [{"role": "user", "content": "State the final answer: 6 + 3 ="}]
    with served(smoke.root / "10-bundle", "--threads", "1") as running, running.client() as http:
        names = [model["id"] for model in http.get("/v1/models").json()["data"]]
        assert [name.split()[1] for name in names] == ["GGUF", "ONNX"]
        for name in names:
            body = {"model": name, "messages": question, "max_tokens": 48, "reasoning_budget": 16}
            answer = http.post("/v1/chat/completions", json=body).json()
            message = answer["choices"][0]["message"]
            assert answer["model"] == name
            assert message["content"].startswith("Answer:")
            assert "Answer:" not in message["reasoning_content"]
            assert message["reasoning_content"].strip()
            assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 16
            body = {"model": name, "messages": question, "max_tokens": 128, "budget_forcing": 1}
            forced = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
            assert "Wait" in forced["reasoning_content"]

"""The chat over a finished run: the terminal as a process, the page through its own HTTP API."""

import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from gradio_client import Client

from tests.e2e.conftest import ROOT


@pytest.fixture(scope="module")
def page(smoke):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    child = subprocess.Popen(
        [sys.executable, "-m", "apps.chat", str(smoke.root), "--port", str(port)], cwd=ROOT
    )
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        try:
            urllib.request.urlopen(url, timeout=1)
            break
        except OSError:
            time.sleep(0.2)
    yield url
    child.terminate()
    child.wait(timeout=20)


def test_two_columns_answer_the_same_question(page):
    client = Client(page, verbose=False)
    names = {}
    for index, name in enumerate(("teacher", "student GGUF Q4_K_M")):
        reasoning, answer, numbers = client.predict(
            name,
            "State the final answer to the following arithmetic problem: 6 + 3 =",
            0.0,
            64,
            0,
            api_name="/reply" if index == 0 else "/reply_1",
        )
        assert re.search(r"\d+ tokens · [\d.]+ tokens/s · first token after [\d.]+ s", numbers)
        names[name] = reasoning + answer
    assert "9" in names["teacher"]
    assert names["student GGUF Q4_K_M"]


def test_an_empty_question_is_answered_without_a_model(page):
    client = Client(page, verbose=False)
    assert client.predict("teacher", "  ", 0.0, 64, 0, api_name="/reply") == (
        "",
        "Type a question first.",
        "",
    )


def test_the_terminal_answers_and_ends(smoke):
    done = subprocess.run(
        [sys.executable, "-m", "apps.terminal", str(smoke.root), "--max-tokens", "48"],
        input="/models\n/use Q8_0\nSolve the following multiplication: 3 * 4.\n/quit\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "teacher, student GGUF Q4_K_M, student GGUF Q8_0, student ONNX int8" in done.stdout
    assert "answering: student GGUF Q8_0" in done.stdout
    assert re.search(r"\d+ tokens, [\d.]+ tokens/s, first after [\d.]+ s", done.stdout)


@pytest.mark.parametrize("module", ["apps.chat", "apps.terminal"])
def test_an_unfinished_run_says_what_to_do(module, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", module, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: {tmp_path} holds no finished student")
    assert done.stderr.splitlines()[-1] == "hint: run python -m pipeline.all first"

"""The chat over a finished run: the terminal as a process, the page through its HTTP API and in a
real browser."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import httpx
import pytest
from gradio_client import Client

from pipeline.records import Problem
from pipeline.store import read_records
from serve.catalogue import REGRESSION_CASES
from tests.e2e.conftest import ROOT
from tests.e2e.serving import write_bundle

CHROMIUM = shutil.which("chromium")
SUM = "State the final answer to the following arithmetic problem: 6 + 3 ="


@contextmanager
def chat(folder):
    """`python -m apps.chat` on a free port, until the page is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    child = subprocess.Popen(
        [sys.executable, "-m", "apps.chat", str(folder), "--port", str(port)], cwd=ROOT
    )
    try:
        deadline_s = time.monotonic() + 300
        while time.monotonic() < deadline_s:
            assert child.poll() is None, f"the chat ended with {child.returncode}"
            try:
                urllib.request.urlopen(url, timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        child.terminate()
        child.wait(timeout=20)


@pytest.fixture(scope="module")
def page(smoke):
    with chat(smoke.root) as url:
        yield url


def asked(url, question, *names, budget=None):
    """The last state of all cells: (about, reasoning, answer, numbers) of each column."""
    chosen = [*names, *["(nobody)"] * (4 - len(names))]
    client = Client(url, verbose=False)
    cells = client.predict(question, 0.0, 64, budget, 0, *chosen, api_name="/answers")
    return [cells[i : i + 4] for i in range(0, 16, 4)]


def test_two_columns_answer_the_same_question(page):
    teacher, student, *empty = asked(page, SUM, "teacher", "student GGUF Q4_K_M")
    assert re.search(r"ready · 1117 MB · \d+ MB of memory", teacher[0])
    assert "9" in teacher[1] + teacher[2]
    for column in (teacher, student):
        assert re.search(r"\d+ tokens · [\d.]+ tokens/s · first token after [\d.]+ s", column[3])
    assert [list(column) for column in empty] == [[""] * 4] * 2


def test_nobody_can_leave_files(page):
    answer = httpx.post(f"{page}/gradio_api/upload", files={"files": ("x.txt", b"xx")})
    assert answer.status_code == 413


def test_an_empty_question_is_answered_without_a_model(page):
    first, *others = asked(page, "  ", "teacher", "student GGUF Q4_K_M")
    assert first[2] == '<div class="said">Type a question first.</div>'
    assert (first[0], first[3]) == ("", "")
    assert [list(column) for column in others] == [[""] * 4] * 3


def test_a_fresh_problem_has_a_verdict_and_can_be_kept(smoke, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(smoke.root, run)
    seen = {
        p.question for f in (run / "01-problems").glob("*.jsonl") for p in read_records(f, Problem)
    }
    with chat(run) as url:
        client = Client(url, verbose=False)
        question, note = client.predict(api_name="/another")
        assert question not in seen
        assert note.startswith("a problem of ")
        cells = client.predict(
            question, 0.0, 96, None, 0, "teacher", *["(nobody)"] * 3, api_name="/answers"
        )
        assert re.search(r"· (✓|✗ right: \S+)</div>", cells[3])
        assert client.predict(question, api_name="/keep") == f"kept in {REGRESSION_CASES}"
        assert client.predict("mine", api_name="/keep").startswith("only a fresh problem")
    (kept,) = read_records(run / REGRESSION_CASES, Problem)
    assert kept.question == question


def test_a_model_that_does_not_load_says_so_while_the_other_answers(tmp_path):
    broken = {
        "name": "broken",
        "engine": "llama.cpp",
        "model": "path:x.gguf",
        "sha256": None,
        "lead": [],
    }
    bundle = write_bundle(tmp_path / "bundle", broken)
    (bundle / "x.gguf").write_bytes(b"GGUF")
    with chat(bundle) as url:
        student, failed, *_ = asked(url, SUM, "student", "broken")
        assert re.search(r"\d+ tokens", student[3])
        assert "x.gguf does not load" in failed[2]
        assert failed[3] == ""
        page = urllib.request.urlopen(url).read().decode()
    assert "This folder holds no teacher." in page


def tokens_of(written):
    return [int(re.search(r"(\d+) tokens", text)[1]) for text in written.all_inner_texts()]


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_in_a_browser_both_columns_stream_fold_stop_and_switch(tmp_path):
    from playwright.sync_api import expect, sync_playwright

    second = json.loads((write_bundle(tmp_path / "x") / "chat.json").read_text())["speakers"][0]
    bundle = write_bundle(tmp_path / "bundle", second | {"name": "second"})
    with chat(bundle) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        alerts = []
        page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        page.goto(url)
        attack = "Repeat after me: <script>alert(1)</script><img src=x onerror=alert(2)>"
        page.get_by_label("Question").fill(attack)
        page.get_by_role("button", name="Ask", exact=True).click()
        answers, numbers = page.locator(".answer .said"), page.locator(".numbers")
        expect(answers).to_have_count(2, timeout=60_000)
        expect(numbers.filter(has_text="tokens/s")).to_have_count(2, timeout=60_000)
        first = numbers.filter(has_text="tokens/s").first.inner_text()
        expect(numbers.filter(has_text="tokens/s").first).not_to_have_text(first, timeout=60_000)
        page.get_by_role("button", name="Stop").click()
        for _ in range(3):  # pieces that were on their way still come
            stopped = numbers.all_inner_texts()
            page.wait_for_timeout(1000)
            if numbers.all_inner_texts() == stopped:
                break
        assert numbers.all_inner_texts() == stopped
        # Stopped, not at its end.
        assert min(int(found) for found in re.findall(r"(\d+) tokens", " ".join(stopped))) < 256
        written = numbers.filter(has_text="tokens/s")
        cut = tokens_of(written)
        page.get_by_role("button", name="Ask", exact=True).click()
        for _ in range(60):  # the same answers go further when nobody stops them
            page.wait_for_timeout(1000)
            whole = tokens_of(written)
            if len(whole) == 2 and all(now > then for now, then in zip(whole, cut, strict=True)):
                break
        else:
            pytest.fail(f"stopped at {cut} tokens, not stopped at {whole}")
        assert alerts == []
        assert page.locator(".said script, .said img").count() == 0

        reasoning = page.locator(".reasoning").first
        expect(reasoning).to_be_hidden()
        page.get_by_role("button", name="Reasoning").first.click()
        expect(reasoning).to_be_visible()
        page.get_by_role("button", name="Reasoning").first.click()
        expect(reasoning).to_be_hidden()

        page.get_by_label("Model 2").click()
        page.get_by_role("option", name="(nobody)").click()
        page.get_by_label("Question").fill("What is 2 + 2?")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(numbers.filter(has_text="tokens/s")).to_have_count(1, timeout=60_000)

        page.set_viewport_size({"width": 390, "height": 844})
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390
        page.get_by_role("tab", name="What was measured").click()
        expect(page.get_by_text("This folder has no report.")).to_be_visible()
        browser.close()


def test_the_terminal_answers_and_ends(smoke):
    done = subprocess.run(
        [sys.executable, "-m", "apps.terminal", str(smoke.root), "--max-tokens", "48"],
        input="/models\n/use Q8_0\nSolve the following multiplication: 3 * 4.\n"
        "/compare Q8_0 int8\n/stats\n/quit\n",
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
    assert "answering: student GGUF Q8_0, student ONNX int8" in done.stdout
    assert re.search(r"student GGUF Q8_0\W+1\W+\d+\W+[\d.]+\W+[\d.]+", done.stdout)


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


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_the_report_of_a_run_fits_a_phone(smoke):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto((smoke.root / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()

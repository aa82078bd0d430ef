"""A real server over the real base student, for tests: started, asked, ended."""

import json
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import httpx

from pipeline.recipe_files import find_recipe, load_recipe
from tests.e2e.conftest import ROOT

STUDENT = load_recipe(find_recipe("smoke")).student
NAME = "student"
LEAD = [{"role": "system", "content": "Think in short steps, then give the answer."}]


def apart(work, *arguments):
    """In a process of its own: llama.cpp and torch must not share one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def write_bundle(folder, *more):
    """A catalogue with the base student's GGUF, as it lies in its package."""
    entry = {
        "name": NAME,
        "engine": "llama.cpp",
        "model": STUDENT.model,
        "sha256": STUDENT.sha256,
        "lead": LEAD,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chat.json").write_text(json.dumps({"speakers": [entry, *more]}))
    return folder


@dataclass
class Served:
    url: str
    process: subprocess.Popen

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def health(self):
        with self.client() as client:
            answer = client.get("/health")
            return answer.status_code, answer.json()

    def asked(self):
        """How many questions are being answered or wait."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return next(float(x.split()[1]) for x in lines if x.startswith("retort_asked "))

    def wait(self, wanted, timeout_s=60.0):
        """Seconds until `wanted()` is true."""
        started_s = time.monotonic()
        while not wanted():
            assert time.monotonic() - started_s < timeout_s
            time.sleep(0.02)
        return time.monotonic() - started_s

    def model_pid(self):
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        return int(found.stdout.split()[0])


@contextmanager
def served(bundle, *arguments):
    """`python -m serve` on a free port, until it is green; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", str(bundle), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving "), process.stderr.read()
        url = line.split(" at ")[1].split("/v1")[0]
        server = Served(url, process)
        server.wait(lambda: server.health()[0] == 200)
        yield server
    finally:
        process.kill()
        process.communicate()

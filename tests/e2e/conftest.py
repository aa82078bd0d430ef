"""One smoke run with the real teacher and the real student, shared by the whole session."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.held_out import held_out_traces
from pipeline.ladder import Judged
from pipeline.recipe import find_recipe, load_recipe
from pipeline.records import Problem
from pipeline.store import read_records
from quant.parity import conversations
from quant.proof import reference_of
from serve.engines import load_engine

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Finished:
    root: Path
    returncode: int
    stdout: str
    stderr: str


def run_smoke(root: Path, *arguments: str) -> Finished:
    """`python -m pipeline.all smoke` to its end, offline."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.all", "smoke", "--run", str(root), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=1200,
        check=False,
    )
    return Finished(root, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Finished:
    finished = run_smoke(tmp_path_factory.mktemp("smoke") / "smoke")
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


@pytest.fixture(scope="session")
def reference(smoke, tmp_path_factory):
    """The student's side of every proof, along the teacher's answers to the evaluation."""
    student = load_recipe(find_recipe("smoke")).student
    evaluation = smoke.root / "01-problems" / "eval.jsonl"
    problems = {p.key: p for p in read_records(evaluation, Problem)}
    answers = [
        a
        for a in read_records(smoke.root / "08-evaluate" / "answers.jsonl", Judged)
        if a.rung == "teacher" and a.sample == 0
    ]
    checkpoint = smoke.root / "04-sft"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    held_out = held_out_traces(answers, problems, student, tokenizer, 500)
    asked = conversations([p.question for p in problems.values()], student.system, 60)
    with closing(load_engine("transformers", path=checkpoint, dtype="float32")) as engine:
        return reference_of(engine, asked, held_out, tmp_path_factory.mktemp("reference"))

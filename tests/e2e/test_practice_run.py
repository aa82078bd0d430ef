"""A whole run with practice, and the comparison with more traces, as a user types them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from pipeline.ladder import Judged
from pipeline.practice_gain import confidence_per_look, is_open, practice_gain
from pipeline.problems import WRITTEN
from pipeline.store import read_records
from tests.e2e.conftest import ROOT, run_smoke

PRACTICE = [
    argument
    for setting in (
        "problems.practice_per_family=6",
        "problems.gate_per_family=4",
        "on_policy.method=auto",
        "on_policy.blocks=1",
        "on_policy.block_attempts=8",
        "on_policy.max_tokens=64",
        "on_policy.replay=8",
        "on_policy.passes=1",
        "on_policy.watch_problems=4",
        "on_policy.watch_samples=2",
        'gguf.types=["Q8_0"]',
        'onnx.precisions=["int8"]',
    )
    for argument in ("--set", setting)
]
RUNGS = [
    "teacher",
    "base student",
    "SFT student",
    "on-policy student",
    "GGUF Q8_0",
    "ONNX int8",
]


@pytest.fixture(scope="module")
def practised(smoke, tmp_path_factory):
    """The smoke run with practice in it: its traces are there already."""
    root = tmp_path_factory.mktemp("practised") / "run"
    shutil.copytree(smoke.root, root)
    finished = run_smoke(root, *PRACTICE)
    # What so small a student may ship is chance; that it is judged is not.
    assert finished.returncode in (0, 7, 9), finished.stderr[-3000:]
    return finished


def read(root, name):
    return json.loads((root / name).read_text())


@pytest.mark.slow
def test_files_come_from_the_practised_student_and_are_judged_beside_it(practised):
    root = practised.root
    assert [row["name"] for row in read(root, "08-evaluate/ladder.json")["rows"]] == RUNGS
    gate = read(root, "09-gate/gate.json")
    assert gate["reference"] == "on-policy student"
    assert "artifacts beside the on-policy student" in practised.stdout
    counts = read(root, "05-on-policy/manifest.json")["counts"]
    assert (counts["method"], counts["attempts"]) == ("aligned", 8)
    for name in WRITTEN:
        assert (root / "01-problems" / f"{name}.jsonl").exists()
    done = read(root, "06-gguf/manifest.json")
    assert done["device"].endswith(" cores")


@pytest.mark.slow
def test_costs_and_practice_are_in_the_report(practised):
    root = practised.root
    costs = read(root, "ledger.json")
    assert [row["step"] for row in costs] == ["traces and SFT", "practice (aligned)"]
    assert all(row["operations"] > 0 and row["took_s"] > 0 for row in costs)
    assert costs[0]["gained"]["items"] == 16
    # More are asked where chance alone could explain what practice gained on those.
    evaluated = list(read_records(root / "08-evaluate" / "answers.jsonl", Judged))
    first = practice_gain(evaluated, confidence_per_look([16, 32]))
    more = read_records(root / "09-gate" / "answers.jsonl", Judged)
    assert sum(a.rung == "SFT student" for a in more) == (16 if is_open(first) else 0)
    gained = costs[1]["gained"]
    assert gained == read(root, "09-gate/gate.json")["practice"]
    assert gained["items"] == (32 if is_open(first) else 16)
    page = (root / "report.html").read_text()
    assert "<h2>Practice: aligned</h2>" in page
    assert "was not tried" in page
    assert page.count("<svg") == 6
    assert "what it cost and gained" in practised.stdout


@pytest.mark.slow
def test_more_traces_for_the_same_time_are_compared_and_shown(practised):
    root = practised.root
    command = [sys.executable, "-m", "pipeline.compare", "on-policy", "sft", "--equal-compute"]
    done = subprocess.run(
        [*command, "--run", str(root)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = read(root, "compare.json")
    train = (root / "compare/more-sft/01-problems/train.jsonl").read_text().splitlines()
    assert found["more_problems"] == len(train) - 32 > 0
    assert found["items"] == 16
    assert f"{found['more_problems']} more problems for SFT" in done.stdout
    page = (root / "report.html").read_text()
    assert "was not tried" not in page
    assert f"spent on {found['more_problems']} more problems" in page


def test_a_run_without_practice_cannot_be_compared(smoke):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline.compare", "on-policy", "sft"),
            *("--equal-compute", "--run", str(smoke.root)),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr == (
        f"error: {smoke.root} has no practice\nhint: set on_policy.method in its recipe\n"
    )

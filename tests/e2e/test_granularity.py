"""A study of two views on the smoke run's traces, as a user types it, and typed again."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from pipeline.cells import SHARED
from pipeline.steps import Steps
from pipeline.store import read_records
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.slow
SUITES = """
[[suite]]
name = "related"
items = 12
families = [{ name = "lcm", options = { max_value = 20 }, reason = "the same factors" }]
"""


def granularity(root, *more):
    command = [sys.executable, "-m", "pipeline.granularity", "smoke", "--run", str(root)]
    arguments = ["--traces", "6", "--views", "full", "steps", "--items", "8"]
    arguments += ["--suites", str(root.parent / "suites.toml"), "--suite-share", "0.25"]
    return subprocess.run(
        [*command, *arguments, "--set", "sft.epochs=1", *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def studied(smoke, tmp_path_factory):
    root = tmp_path_factory.mktemp("study") / "run"
    (root.parent / "suites.toml").write_text(SUITES)
    for name in SHARED:  # some of them are optional stages
        if (smoke.root / name).exists():
            shutil.copytree(smoke.root / name, root / name)
    done = granularity(root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done


def test_students_of_both_arms_are_taught_and_compared(studied):
    root, done = studied
    found = json.loads((root / "granularity" / "granularity.json").read_text())
    assert [(part["arm"], part["traces"]) for part in found["parts"]] == [
        ("traces", 6),
        ("tokens", 6),
    ]
    equal_traces, equal_tokens = ({s["view"]: s for s in p["students"]} for p in found["parts"])
    assert equal_traces["full"]["examples"] == equal_traces["steps"]["examples"] == 6
    assert equal_traces["full"] == equal_tokens["full"]
    assert equal_traces["full"]["updates"] == equal_traces["steps"]["updates"] > 0
    few, many = equal_traces["steps"], equal_tokens["steps"]
    budget = equal_traces["full"]["supervised_tokens"]
    assert few["supervised_tokens"] < many["supervised_tokens"] <= 1.5 * budget
    assert all(len(s["right"]) == 8 for s in (*equal_traces.values(), *equal_tokens.values()))
    students = [*equal_traces.values(), *equal_tokens.values()]
    sizes = {suite: len(right) for suite, right in students[0]["suites"].items()}
    assert sizes == {"related": 3}
    assert all({k: len(r) for k, r in s["suites"].items()} == sizes for s in students)
    assert "| full | 6 x 1 |" in done.stdout
    assert (root / "granularity" / "granularity.svg").read_text().startswith("<svg")


def test_every_line_has_its_worth_and_some_stay(studied):
    folder = studied[0] / "granularity" / "6-traces-steps" / "04-examples"
    rows = list(read_records(folder / "steps.jsonl", Steps))
    assert len(rows) == 6
    assert all(len(row.lines) == len(row.cost_nats) == len(row.kept) for row in rows)
    for row in rows:
        for cost, kept in zip(row.cost_nats, row.kept, strict=True):
            assert kept == (cost > 0.1)
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert 0 < counts["lines_cut"] < counts["lines"]


def test_weights_of_a_study_are_not_kept_and_nothing_is_taught_twice(studied):
    root, first = studied
    assert list(root.glob("granularity/*/04-sft/model.safetensors")) == []
    taught = [*root.glob("granularity/*/trained.json"), *root.glob("granularity/*/04-sft/*.json")]
    before = {path: path.stat().st_mtime_ns for path in taught}
    assert len(before) > 4
    again = granularity(root)
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert "04-sft done" in first.stderr
    assert "04-sft done" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in taught} == before


def test_more_traces_than_there_are_is_one_line(studied):
    done = granularity(studied[0], "--traces", "600")
    kept = len((studied[0] / "03-curated" / "kept.jsonl").read_text().splitlines())
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        f"error: 600 traces a student wanted, {kept} kept in {studied[0]}"
    )

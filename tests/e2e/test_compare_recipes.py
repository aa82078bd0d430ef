"""Two published methods taught and asked as a user types it, and typed again."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.records import Example
from pipeline.store import read_records
from pipeline.transfer_summary import Asked
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.slow
SUITES = """
[[suite]]
name = "related"
items = 2
families = [{ name = "lcm", options = { max_value = 20 }, reason = "the same factors" }]

[styles]
items = 2

[[style]]
name = "lower case"
lower = true
"""
NAMES = ("r1", "s1")


def compare(folder, *more):
    general = json.dumps([str(folder / "general.jsonl")])
    settings = {
        "problems.train_per_family": 3,
        "problems.eval_per_family": 2,
        "problems.practice_per_family": 1,
        "traces.samples": 2,
        "traces.temperature": 0.6,
        "general.files": general,
        "sft.epochs": 1,
        "curate.select_traces": 4,
        "evaluate.max_tokens": 64,
    }
    command = [sys.executable, "-m", "pipeline.compare", "recipes", "--run", str(folder / "run")]
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return subprocess.run(
        [*command, "--items", "8", "--suites", str(folder / "suites.toml"), *sets, *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=1200,
        check=False,
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "suites.toml").write_text(SUITES)
    rows = [{"prompt": f"Say {n}.", "response": f"{n}"} for n in range(9)]
    (folder / "general.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    done = compare(folder, "--recipes", *NAMES)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def test_every_method_is_taught_its_own_way_and_asked_the_same(compared):
    folder, done = compared
    found = {m["name"]: m for m in json.loads((folder / "run" / "recipes.json").read_text())}
    assert list(found) == ["base student", *NAMES]
    assert found["r1"]["right"].keys() == found["s1"]["right"].keys()
    assert found["base student"]["right"].keys() == found["s1"]["right"].keys()
    assert found["base student"]["supervised_tokens"] == 0
    assert "| base student |" in done.stdout
    assert len(found["r1"]["right"]) == 8
    for name in NAMES:
        rows = list(read_records(folder / "run" / name / "asked.jsonl", Asked))
        counts = {s: sum(r.suite == s for r in rows) for s in ("fresh", "related", "styles")}
        assert counts == {"fresh": 8, "related": 2, "styles": 2}
        assert f"| {name} |" in done.stdout
    assert list((folder / "run").glob("*/0*/model.safetensors")) == []


def test_general_data_is_learnt_beside_the_traces(compared):
    root = compared[0] / "run" / "r1"
    examples = list(read_records(root / "04-examples" / "examples.jsonl", Example))
    general = [e for e in examples if e.family == "general"]
    reasoned = len(examples) - len(general)
    assert len(general) == min(9, round(reasoned / 3))
    assert all(e.prompt[0]["content"] == "You are a helpful assistant." for e in general)


def test_s1_learns_from_what_references_cannot_solve(compared):
    root = compared[0] / "run" / "s1"
    solved = json.loads((root / "03-references" / "manifest.json").read_text())["counts"]
    dropped = (root / "03-curated" / "dropped.jsonl").read_text()
    kept = (root / "03-curated" / "kept.jsonl").read_text().splitlines()
    assert 1 <= len(kept) <= 4
    assert solved["unsolved"] < solved["problems"]
    assert '"reason":"easy"' in dropped


def test_answers_two_recipes_want_are_asked_once(compared):
    folder, _ = compared
    traces = [folder / "run" / name / "02-traces" / "traces.jsonl" for name in NAMES]
    own = [set(path.read_text().splitlines()) for path in traces]
    assert own[0] == own[1]
    pool = (folder / "run" / "pool" / "02-traces.jsonl").read_text().splitlines()
    assert len(pool) == len(own[0]) == 24


def test_again_teaches_nothing(compared):
    folder, first = compared
    kept = [*(folder / "run").glob("*/method.json"), *(folder / "run").glob("*/scratch/*.jsonl")]
    kept += (folder / "run").glob("*/evaluated/scratch/*.jsonl")
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) > len(NAMES)
    again = compare(folder, "--recipes", *NAMES)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "04-sft done" in first.stderr
    assert "04-sft done" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_more_items_than_there_are_is_one_line(compared):
    done = compare(compared[0], "--recipes", "s1", "--items", "9")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("error: 9 items wanted, 8 in ")

"""A finished run is asked what it was not trained on, as a user types it, and typed again."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from pipeline.contamination import Overlap
from pipeline.store import read_records
from pipeline.transfer_summary import Asked
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.slow
SUITES = """
[[suite]]
name = "related"
items = 3
families = [{ name = "lcm", options = { max_value = 20 }, reason = "the same factors" }]

[[suite]]
name = "seen"
file = "seen.jsonl"

[samples]
items = 1
k = 4

[styles]
items = 8

[[style]]
name = "lower case"
lower = true

[[style]]
name = "few-shot"
shots = 1
"""
RUNGS = ("base student", "SFT student", "GGUF Q8_0")


def transfer(root, suites, *more):
    command = [sys.executable, "-m", "pipeline.transfer", "--run", str(root)]
    return subprocess.run(
        [*command, "--suites", str(suites), *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def asked(smoke, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    shutil.copytree(smoke.root, folder / "run", copy_function=os.link)
    suites = folder / "suites.toml"
    suites.write_text(SUITES)
    # A problem of the training set with a word before it: a leak that has to be found.
    first = json.loads((smoke.root / "01-problems" / "train.jsonl").read_text().splitlines()[0])
    leaked = {**first, "question": "Please! " + first["question"]}
    (folder / "seen.jsonl").write_text(json.dumps(leaked) + "\n")
    done = transfer(folder / "run", suites, "--rungs", *RUNGS)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", suites, done


def test_every_rung_is_asked_everything_once(asked):
    root, _, _ = asked
    rows = list(read_records(root / "transfer" / "answers.jsonl", Asked))
    counts = {
        rung: {
            suite: sum(r.suite == suite for r in rows if r.rung == rung)
            for suite in ("fresh", "related", "seen", "styles", "samples")
        }
        for rung in RUNGS
    }
    whole = {"fresh": 16, "related": 3, "seen": 1, "styles": 16}
    assert counts == {
        "base student": {**whole, "samples": 4},
        "SFT student": {**whole, "samples": 4},
        "GGUF Q8_0": {**whole, "samples": 0},
    }
    forced = [r for r in rows if r.suite == "forced"]
    assert forced
    assert all("Answer:" in r.completion.text for r in forced)


def test_a_leaked_problem_is_flagged_with_its_source(asked):
    root, _, _ = asked
    flagged = list(read_records(root / "transfer" / "contamination.jsonl", Overlap))
    leaked = {(r.kind, r.where) for r in flagged if r.suite == "seen"}
    assert ("near_duplicate", "prompt") in leaked
    summary = json.loads((root / "transfer" / "transfer.json").read_text())
    parts = summary["contamination"]["seen"]["rungs"]["SFT student"]
    assert parts["flagged"]["items"] == 1
    assert parts["clean"] is None


def test_the_report_shows_it_and_the_terminal_says_it(asked):
    root, _, done = asked
    page = (root / "report.html").read_text()
    for title in ("Suites", "Prompt styles", "Many samples", "Accuracy by length"):
        assert f"<h3>{title}</h3>" in page
        assert f"## {title}" in done.stdout
    assert "SFT student after base student: pass@1" in page
    assert done.stdout.splitlines()[-1] == f"report: {root / 'report.html'}"


def test_again_asks_nothing(asked):
    root, suites, first = asked
    before = (root / "transfer" / "answers.jsonl").read_bytes()
    log = root / "transfer" / "scratch" / "answers.jsonl"
    written = log.stat().st_mtime_ns
    again = transfer(root, suites, "--rungs", *RUNGS)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert (root / "transfer" / "answers.jsonl").read_bytes() == before
    assert log.stat().st_mtime_ns == written


def test_rungs_asked_before_stand_beside_those_asked_now(asked):
    root, suites, first = asked
    again = transfer(root, suites, "--rungs", "GGUF Q8_0")
    assert (again.returncode, again.stdout) == (0, first.stdout)


def test_other_suites_replace_what_was_asked(asked):
    root, suites, _ = asked
    other = suites.with_name("other.toml")
    other.write_text(SUITES.replace("items = 3", "items = 2"))
    done = transfer(root, other, "--rungs", "GGUF Q8_0")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((root / "transfer" / "transfer.json").read_text())
    assert set(found["rungs"]) == {"teacher", "GGUF Q8_0"}
    assert found["suites"]["related"]["GGUF Q8_0"]["whole"]["items"] == 2


def test_an_unknown_rung_is_one_line(asked):
    root, suites, _ = asked
    done = transfer(root, suites, "--rungs", "SFT")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2] == "error: no rung 'SFT'"
    assert done.stderr.splitlines()[-1].startswith("hint: there are teacher, base student, ")


def test_a_run_whose_parts_do_not_belong_together_is_refused(asked, smoke, tmp_path):
    """As left by a command that changed it and stopped early."""
    root = tmp_path / "run"
    shutil.copytree(smoke.root, root)
    recipe = json.loads((root / "recipe.json").read_text())
    recipe["evaluate"]["max_tokens"] += 1
    (root / "recipe.json").write_text(json.dumps(recipe))
    done = transfer(root, asked[1], "--rungs", "GGUF Q8_0")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-2:] == [
        f"error: {root} is not finished: 08-evaluate is to be done, or done again",
        f"hint: python -m pipeline.all RECIPE --run {root}",
    ]


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    done = transfer(tmp_path, "embedded")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("error: ")

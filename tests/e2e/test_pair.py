"""The preflight as a user types it: what it finds in the embedded pair, what it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.pipeline.tiny import checkpoint

ROOT = Path(__file__).parent.parent.parent
PRACTICE = ("--set", "problems.practice_per_family=30", "--set", "on_policy.method=auto")


def pair(*arguments, module="pipeline.pair", recipe="smoke"):
    return subprocess.run(
        [sys.executable, "-m", module, recipe, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        timeout=600,
        check=False,
    )


@pytest.mark.heavy
def test_the_embedded_pair_is_examined_and_forecast():
    done = pair(*PRACTICE)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "student ends a turn with its end token '<|im_end|>'" in said
    assert "digits are cut alike on both sides" in said
    shared = re.search(r"([\d,]+) of the student's ([\d,]+) tokens are tokens of the teacher", said)
    assert 38_000 < int(shared[1].replace(",", "")) < 40_000
    assert "method   aligned: two vocabularies" in said
    assert said.count("tokens of prompt") == 3
    # The learnt part begins where the student's turn begins, and ends with its end mark.
    assert "<think>\n47 + 38 = 47 + 30 + 8 = 77 + 8 = 85" in said
    assert re.search(r"Answer: 24<\|im_end\|>", said)
    for word in ("memory", "disk", "traces", "practice"):
        assert re.search(rf"^{word} ", said, re.MULTILINE)
    assert re.search(
        r"practice 3 blocks of about \d+ s \(112 attempts at [\d.]+ s, about 56 grades and "
        r"0 continuations at [\d.]+ s, 44 updates at about [\d.]+ s\): \d+ minutes",
        said,
    )
    assert "teacher grades in its own prompt, without <think> tags" in said


def test_a_method_that_cannot_work_is_refused_with_the_reason():
    done = pair(*PRACTICE[:2], "--set", "on_policy.method=exact")
    assert done.returncode == 3
    assert done.stderr == (
        "error: on_policy.method exact cannot work: teacher.engine is llama.cpp, exact needs "
        "transformers\nhint: aligned can\n"
    )


def test_practice_without_problems_is_a_fault_of_the_recipe():
    done = pair("--set", "on_policy.method=auto")
    assert done.returncode == 2
    assert "on_policy.method auto needs practice_per_family above 0" in done.stderr


def test_a_run_refuses_before_it_asks_the_teacher(tmp_path):
    method = (*PRACTICE[:2], "--set", "on_policy.method=exact")
    done = pair("--run", str(tmp_path / "run"), *method, module="pipeline.all")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-2:] == [
        "error: on_policy.method exact cannot work: teacher.engine is llama.cpp, exact needs "
        "transformers",
        "hint: aligned can",
    ]
    checkpoint(tmp_path / "student", 0)
    (tmp_path / "student" / "chat_template.jinja").unlink()
    (tmp_path / "mine.toml").write_text(
        'extends = "smoke"\n[student]\nanew = true\n'
        f'model = "path:{tmp_path / "student"}"\nsystem = "s"\n'
    )
    mine = str(tmp_path / "mine.toml")
    done = pair("--run", str(tmp_path / "run"), module="pipeline.all", recipe=mine)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        "error: this pair cannot work: the student's tokenizer has no chat template"
    )
    assert [p.name for p in (tmp_path / "run").glob("0*")] == ["01-problems"]

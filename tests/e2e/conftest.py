"""One smoke run with the real teacher and the real student, shared by the whole session."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.examine import inputs_of
from pipeline.gate import reference_for
from tests.e2e.proving import RECIPE

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
        timeout=2400,
        check=False,
    )
    return Finished(root, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Finished:
    finished = run_smoke(tmp_path_factory.mktemp("smoke") / "smoke")
    # 9: no verdict on any file, as where the student is right nowhere.
    assert finished.returncode == 0, (finished.returncode, finished.stderr[-3000:])
    return finished


@pytest.fixture(scope="session")
def reference(smoke, tmp_path_factory):
    """The student's side of every proof, along the teacher's answers to the evaluation."""
    gate = RECIPE.gate.model_copy(update={"conversations": 60, "divergence_tokens": 500})
    config = (RECIPE.student, RECIPE.evaluate, gate)
    return reference_for(config, inputs_of(smoke.root), tmp_path_factory.mktemp("reference"))

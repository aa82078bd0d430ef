"""How a process that trained leaves. What happens to it at its end is arranged, the end is real."""

import json
import subprocess
import sys

import pytest

from pipeline.recipe import SftOptions
from pipeline.spread import SftJob
from pipeline.training_options import TrainingOptions

# As one of gloo's threads: it holds a tensor still when the interpreter goes down, and aborts.
TRAINING = """
import atexit, os, sys
from pathlib import Path
from pipeline import training_process

class Held:
    def __del__(self):
        os.abort()

def train(job, on_step):
    on_step(1, 0.5)
    sys.modules["held"] = Held()
    atexit.register(print, "a tracker said goodbye")
    {end}

training_process._train = train
training_process.run("SftJob", Path(sys.argv[1]))
"""


def trained(folder, end: str) -> subprocess.CompletedProcess[str]:
    job = SftJob(
        base=folder,
        scratch=folder,
        out=folder,
        seed=1,
        training=TrainingOptions(),
        resume=None,
        examples=folder,
        options=SftOptions(),
    )
    (folder / "job.json").write_text(job.model_dump_json())
    command = [sys.executable, "-c", TRAINING.format(end=end), str(folder / "job.json")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("end", "exit_code", "last"),
    [
        ("return [{'step': 1}]", 0, {"rows": [{"step": 1}]}),
        (
            "from serve.errors import TrainingDiverged; raise TrainingDiverged('three in a row')",
            6,
            {"error": "TrainingDiverged", "message": "three in a row", "hint": None},
        ),
    ],
)
def test_a_training_that_is_over_is_not_undone_by_the_end_of_its_process(
    tmp_path, end, exit_code, last
):
    ended = trained(tmp_path, end)
    assert ended.returncode == exit_code
    said = [json.loads(line) for line in ended.stdout.splitlines()]
    assert said == [{"step": 1, "loss": 0.5}, last]
    assert "a tracker said goodbye" in ended.stderr


def test_a_training_that_failed_unexpectedly_says_where(tmp_path):
    ended = trained(tmp_path, "raise OSError('disk gone')")
    assert ended.returncode not in (0, 6)
    assert "OSError: disk gone" in ended.stderr

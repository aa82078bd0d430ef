"""Traces by the million: seconds and memory of curation, as a user runs it.

    python -m benchmarks.scale [--traces 10000 100000 1000000] [--folder FOLDER]

Makes a run whose traces are synthetic, with known shares of what curation drops, and does its stage
03 with `python -m pipeline.all --until 03-curated`, decontamination included. Memory is the sum of
resident sets over the whole process tree, ten times a second: shared pages count several times.
Counts must equal those that the traces were made with. 4 kB a trace are written and removed again.
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
from typing import Any, NamedTuple

import psutil

from benchmarks.machine import describe
from benchmarks.synthetic_traces import MAX_TOKENS, PER_PROBLEM, Synthetic
from pipeline.all import stages
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.run import Manifest, RunDir
from pipeline.store import write_json, write_records
from pipeline.workers import workers
from serve.models import file_sha256

LOOK_EVERY_S = 0.1
RECIPE = "smoke"
PIECE_TRACES = 5_000
SETTINGS = (
    "curate.decontaminate=true",
    f"curate.per_problem={PER_PROBLEM}",
    f"curate.max_tokens={MAX_TOKENS}",
)


class Measured(NamedTuple):
    traces: int
    gigabytes: float
    took_s: float
    stage_s: float
    peak_gigabytes: float


def make_run(root: Path, traces: Synthetic) -> None:
    """A run that has its problems and traces, proven done."""
    recipe = load_recipe(find_recipe(RECIPE), SETTINGS)
    run = RunDir(root)
    problems, collected = stages(recipe)[:2]
    write_records(run.folder(problems) / "eval.jsonl", traces.evaluation())
    for name in ("train", "gate"):
        write_records(run.folder(problems) / f"{name}.jsonl", [])
    _write_traces(run.folder(collected) / "traces.jsonl", traces.count)
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


def curate(root: Path) -> tuple[float, int]:
    """Seconds of the command, and the most bytes its processes held together."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline.all", RECIPE, "--run", str(root), *settings]
    started_s, peak = time.monotonic(), 0
    with subprocess.Popen([*command, "--until", "03-curated"], stdout=subprocess.DEVNULL) as child:
        tree = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, _resident_bytes(tree))
            time.sleep(LOOK_EVERY_S)
    if child.returncode:
        raise SystemExit(f"curation ended with {child.returncode}")
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


def measure(count: int, folder: Path | None) -> tuple[Measured, Counter[str]]:
    """Raises SystemExit where curation counted something else than was made."""
    traces = _synthetic(count)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        root = Path(temporary) / "run"
        make_run(root, traces)
        size = (root / "02-traces" / "traces.jsonl").stat().st_size
        took_s, peak = curate(root)
        manifest = json.loads((root / "03-curated" / "manifest.json").read_text())
    found, expected = counted(manifest["counts"]), traces.expected()
    if found != expected:
        raise SystemExit(f"{count} traces: {dict(found - expected)} too many, of {dict(expected)}")
    return Measured(count, size / 1e9, took_s, manifest["took_s"], peak / 1e9), found


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and memory of curation by size.")
    parser.add_argument("--traces", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the files are made (default: /tmp)")
    options = parser.parse_args()
    print(describe("pydantic"), flush=True)
    print("| traces | GB | command s | stage s | peak GB | traces/s |\n|---|---|---|---|---|---|")
    for count in options.traces:
        row, found = measure(count, options.folder)
        print(
            f"| {row.traces:,} | {row.gigabytes:.2f} | {row.took_s:.0f} | {row.stage_s:.0f} "
            f"| {row.peak_gigabytes:.2f} | {row.traces / row.stage_s:,.0f} |",
            flush=True,
        )
    print(f"counts as made, of the last: {dict(sorted(found.items()))}")
    print(describe("pydantic"))


if __name__ == "__main__":
    main()

"""Traces out of a run and into another: shards that `datasets` reads, with checksums and a card.

    python -m pipeline.traces export RUN OUT [--format parquet|jsonl] [--shard-mb 256]
    python -m pipeline.traces import IN RUN

Export writes the folder OUT whole or not at all. Import believes nothing: it checks every sha256
and every row and adds to `RUN/imported-traces.jsonl` what is not there yet, all or nothing; stage
02 takes it from there and judges it again (`pipeline/imported.py`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic_core import from_json

from pipeline.imported import IMPORTED
from pipeline.recipe_files import recorded_recipe
from pipeline.records import Trace
from pipeline.run import RunDir
from pipeline.scan import cuts_of
from pipeline.sorted_runs import Key, merged, sorted_lines
from pipeline.store import parse_record, record_line, replacing, sync_folder, write_file, write_json
from pipeline.trace_card import Shard, Shards, trace_card
from pipeline.trace_rows import READERS, WRITERS, Format, Row, row_of, trace_of
from pipeline.workers import workers, workers_for
from serve.errors import DataError, DiskError, Interrupted, RetortError, UntrustedFile, UsageError
from serve.models import file_sha256

STORE = Path("02-traces") / "traces.jsonl"
SHARDS = "shards.json"
MEGABYTE = 10**6


class _Piece(NamedTuple):
    """A shard that is to be written: the store's lines from `start` to `end`."""

    store: Path
    path: Path
    kind: Format
    start: int
    end: int


class _Tally(NamedTuple):
    models: Counter[str]
    verdicts: Counter[str]
    families: Counter[str]

    def add(self, trace: Trace) -> None:
        self.models[trace.model] += 1
        self.verdicts[trace.verdict.reason] += 1
        self.families[trace.problem.family] += 1


def export(root: Path, out: Path, kind: Format = "parquet", shard_mb: int = 256) -> Shards:
    """Write a run's traces as a folder of shards of about so many MB as a store writes them.

    Raises UsageError where `out` is there already, DataError where the run has no traces, BusyRun
    while a run is at work there.
    """
    if out.exists():
        raise UsageError(f"{out} is there already", hint="name a new folder, or remove it")
    recorded_recipe(root)  # a lock would make the folder of a run that is not there
    # Who may not write into a run cannot lock it, and does not learn that another is at work there.
    writable = os.access(root, os.W_OK)
    with RunDir(root).locked() if writable else nullcontext():
        return _export(root, out, kind, shard_mb)


def _export(root: Path, out: Path, kind: Format, shard_mb: int) -> Shards:
    recipe, store = recorded_recipe(root), root / STORE
    cuts = cuts_of(store, shard_mb * MEGABYTE)
    if not cuts:
        raise DataError(f"{store} has no traces")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed export left
    names = [f"traces-{n:05d}-of-{len(cuts):05d}.{kind}" for n in range(len(cuts))]
    pieces = [_Piece(store, partial / n, kind, *cut) for n, cut in zip(names, cuts, strict=True)]
    try:
        about = _written(pieces, recipe.teacher.license)
        write_json(partial / SHARDS, about.model_dump(mode="json"))
        write_file(partial / "README.md", trace_card(about, recipe.run.name, f"traces-*.{kind}"))
        _rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return about


def _written(pieces: Sequence[_Piece], license_name: str) -> Shards:
    tally = _Tally(Counter(), Counter(), Counter())
    shards = []
    with workers(workers_for(pieces[-1].end)) as crew:
        for shard, part in crew.map(_write_shard, pieces):
            shards.append(shard)
            for total, more in zip(tally, part, strict=True):
                total.update(more)
    return Shards(
        retort=version("retort"),
        license=license_name,
        traces=sum(shard.traces for shard in shards),
        models=dict(sorted(tally.models.items())),
        verdicts=dict(sorted(tally.verdicts.items())),
        families=dict(sorted(tally.families.items())),
        shards=tuple(shards),
    )


def _write_shard(piece: _Piece) -> tuple[Shard, _Tally]:
    tally = _Tally(Counter(), Counter(), Counter())

    def rows() -> Iterator[Row]:
        with piece.store.open("rb") as file:
            file.seek(piece.start)
            while (start := file.tell()) < piece.end:
                trace = parse_record(file.readline(), Trace, f"{piece.store.name} byte {start}")
                tally.add(trace)
                yield row_of(trace)

    WRITERS[piece.kind](piece.path, rows())
    shard = Shard(
        name=piece.path.name,
        sha256=file_sha256(piece.path),
        size_bytes=piece.path.stat().st_size,
        traces=tally.models.total(),
    )
    return shard, tally


def _rename(partial: Path, out: Path) -> None:
    try:
        os.rename(partial, out)
        sync_folder(out.parent)
    except OSError as error:
        raise DiskError(f"cannot rename {partial} to {out}: {error.strerror}") from error


class _Arrival(NamedTuple):
    """A shard that is to be read, and where its traces are put as lines in the order of keys."""

    path: Path
    shard: Shard
    target: Path


def bring(folder: Path, root: Path) -> int:
    """Add the traces of an export to a run. Returns how many the run has of imported ones now.

    Raises UntrustedFile where a shard is not the one that was exported, DataError for a row that is
    no trace or for another trace under a key that is known.
    """
    about = _read_shards(folder)
    target = root / IMPORTED
    with RunDir(root).locked():
        scratch = root / f".{IMPORTED}.scratch"
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed import left
        scratch.mkdir()
        arrivals = [_Arrival(folder / s.name, s, scratch / f"{s.name}.lines") for s in about.shards]
        try:
            with workers(workers_for(sum(s.size_bytes for s in about.shards))) as crew:
                files = list(crew.map(_read_shard, arrivals))
            known = [target] if target.exists() else []
            count = 0
            with replacing(target) as out:
                for line in _once(merged([*known, *files], _key, scratch)):
                    out.write(line)
                    count += 1
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return count


def _read_shards(folder: Path) -> Shards:
    path = folder / SHARDS
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UntrustedFile(
            f"cannot read {path}: {error}", hint="it lists the checksums"
        ) from error
    about = parse_record(text, Shards, str(path))
    listed = {shard.name for shard in about.shards}
    unlisted = sorted(p.name for p in folder.glob("traces-*") if p.name not in listed)
    if unlisted:
        raise UntrustedFile(f"{folder / unlisted[0]} is not in {SHARDS}")
    return about


def _read_shard(arrival: _Arrival) -> Path:
    path, shard = arrival.path, arrival.shard
    if not path.is_file():
        raise DataError(f"{path} is missing, which {SHARDS} lists")
    found = file_sha256(path)
    if found != shard.sha256:
        raise UntrustedFile(f"sha256 of {path} is {found}, {SHARDS} says {shard.sha256}")
    count, last, ordered = 0, "", True
    with replacing(arrival.target) as file:
        for place, row in READERS[path.suffix](path):
            trace = trace_of(row, place)
            file.write(record_line(trace).encode("utf-8"))
            ordered = ordered and (count == 0 or last <= trace.key)
            count, last = count + 1, trace.key
    if count != shard.traces:
        raise DataError(f"{path} has {count} traces, {SHARDS} says {shard.traces}")
    if ordered:
        return arrival.target
    target = arrival.target.with_suffix(".sorted")
    runs = arrival.target.with_suffix(".runs")
    with arrival.target.open("rb") as lines, replacing(target) as file:
        file.writelines(sorted_lines(lines, _key, runs))
    return target


def _key(line: bytes) -> Key:
    return [from_json(line)["key"]]


def _once(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Each trace once, whatever its verdict was: it is judged again where it is used.

    Raises DataError where one key stands for two answers.
    """
    for key, group in groupby(lines, key=_key):
        first, *others = dict.fromkeys(group)
        if any(_answer(line) != _answer(first) for line in others):
            raise DataError(
                f"two different answers have the key {key[0]}",
                hint="drawn again, an answer of vLLM may differ: bring them into two runs",
            )
        yield first


def _answer(line: bytes) -> dict[str, Any]:
    return {name: value for name, value in from_json(line).items() if name != "verdict"}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "export":
            about = export(options.run, options.out, options.format, options.shard_mb)
            print(f"{about.traces} traces in {len(about.shards)} shards: {options.out}")
        else:
            print(f"{bring(options.folder, options.run)} imported traces: {options.run / IMPORTED}")
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: nothing was changed", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.traces",
        description="Publish the traces of a run, or bring published ones into a run.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    out = verbs.add_parser("export", help="write a run's traces as a data set")
    out.add_argument("run", type=Path, metavar="RUN")
    out.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    out.add_argument("--format", choices=get_args(Format), default="parquet")
    out.add_argument(
        "--shard-mb", type=_megabytes, default=256, help="of traces a shard, uncompressed"
    )
    into = verbs.add_parser("import", help="add an export's traces to a run")
    into.add_argument("folder", type=Path, metavar="IN")
    into.add_argument("run", type=Path, metavar="RUN", help="a run's folder, new or not")
    return parser


def _megabytes(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

"""Traces as rows of flat columns, in shards of Parquet or JSON lines.

The columns are those that `datasets` shows: plain values and one list. `entry`, what a family's
scorer needs, has other fields in every family and is kept as JSON text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from pipeline.records import Trace
from pipeline.store import replacing
from serve.errors import DataError

Format = Literal["parquet", "jsonl"]
Row = dict[str, Any]

# Column -> what `datasets` calls its type. A question mark: may be missing.
COLUMNS = {
    "key": "string",
    "question": "string",
    "answer": "string",
    "family": "string",
    "scorer": "string",
    "entry": "string",
    "sample": "int64",
    "model": "string",
    "prompt_sha256": "string",
    "text": "string",
    "ids": "list",
    "finish": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "passed": "bool?",
    "reason": "string",
    "extracted": "string?",
    "verifier": "string",
}
TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "list": pa.list_(pa.int64()),
}
SCHEMA = pa.schema(
    pa.field(name, TYPES[kind.rstrip("?")], nullable=kind.endswith("?"))
    for name, kind in COLUMNS.items()
)
# Rows that are in memory at a time, a group of them in the file.
GROUP_ROWS = 1_024


def row_of(trace: Trace) -> Row:
    """Raises DataError for a trace that no store would hold."""
    problem, said, verdict = trace.problem, trace.completion, trace.verdict
    if said.timing is not None:
        raise DataError(f"trace {trace.key} has a timing, which stored traces have not")
    return {
        "key": trace.key,
        "question": problem.question,
        "answer": problem.answer,
        "family": problem.family,
        "scorer": problem.scorer,
        "entry": to_json(problem.entry).decode("utf-8"),
        "sample": trace.sample,
        "model": trace.model,
        "prompt_sha256": trace.prompt_sha256,
        "text": said.text,
        "ids": list(said.ids),
        "finish": said.finish,
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.completion_tokens,
        "passed": verdict.passed,
        "reason": verdict.reason,
        "extracted": verdict.extracted,
        "verifier": verdict.verifier,
    }


def trace_of(row: Row, place: str) -> Trace:
    """Raises DataError naming `place`, the column and what is wrong with it."""
    if row.keys() != COLUMNS.keys():
        odd = sorted(row.keys() ^ COLUMNS.keys())[0]
        raise DataError(f"{place}: column {odd!r} is {'unknown' if odd in row else 'missing'}")
    groups = {
        "problem": ("question", "answer", "family", "scorer"),
        "completion": ("text", "ids", "finish", "prompt_tokens", "completion_tokens"),
        "verdict": ("passed", "reason", "extracted", "verifier"),
    }
    nested = {name: {column: row[column] for column in own} for name, own in groups.items()}
    plain = {column: row[column] for column in ("key", "sample", "model", "prompt_sha256")}
    try:
        nested["problem"]["entry"] = from_json(row["entry"])
        # Through JSON, where a number is no text and no text a number.
        return Trace.model_validate_json(to_json({**plain, **nested}), strict=True)
    except (ValidationError, ValueError, TypeError) as error:
        raise DataError(f"{place}: {_fault(error)}") from error


def _fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"entry: {error}"
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    with replacing(path) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with replacing(path) as file:
        file.writelines(to_json(row) + b"\n" for row in rows)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group


def read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    """(where it stands, row). Raises DataError for another schema."""
    try:
        with pq.ParquetFile(path) as file:
            _check_schema(path, file.schema_arrow)
            number = 0
            for batch in file.iter_batches(batch_size=GROUP_ROWS // 4):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _check_schema(path: Path, schema: Any) -> None:
    for field in SCHEMA:
        if field.name not in schema.names:
            raise DataError(f"{path.name} has no column {field.name!r}")
        found = schema.field(field.name).type
        if found != field.type:
            raise DataError(f"{path.name}: column {field.name!r} is {found}, not {field.type}")


def read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                place = f"{path.name} line {number}"
                try:
                    row = from_json(line)
                except ValueError as error:
                    raise DataError(f"{place} is no JSON: {error}") from error
                if not isinstance(row, dict):
                    raise DataError(f"{place} is no row: {str(row)[:40]}")
                yield place, row
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


WRITERS: dict[Format, Callable[[Path, Iterable[Row]], None]] = {
    "parquet": write_parquet,
    "jsonl": write_jsonl,
}
READERS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
}

"""Files that survive a kill: atomic whole files, and append-only JSON lines.

An appended line is acknowledged once `append` returns: it is in the kernel, so a killed process
loses nothing; fsync every 32 records or 5 s bounds what a power loss can take.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from serve.errors import DataError, DiskError

SYNC_EVERY_RECORDS = 32
SYNC_EVERY_S = 5.0
# A bucket that is mounted as a folder gets a file when it is closed, and not before.
CLOSED_EVERY_S = 300.0

AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def write_file(path: Path, content: str | bytes) -> None:
    """Replace `path` whole or not at all.

    Raises DiskError naming the path and the bytes that did not fit; the old file stays.
    """
    raw = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path, len(raw)) as file:
        file.write(raw)


@contextlib.contextmanager
def replacing(path: Path, size_bytes: int | None = None) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and leaves no trace else.

    Temporary file, fsync, rename, fsync the folder. Raises DiskError naming the path and
    `size_bytes`, or how far it came.
    """
    temporary = path.with_name(f".{path.name}.partial")
    came_bytes = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            finally:
                came_bytes = file.tell()
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        size = came_bytes if size_bytes is None else size_bytes
        raise DiskError(f"cannot write {size} bytes to {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def record_line(record: BaseModel) -> str:
    """One record as the one line that stands for it, the same bytes every time."""
    return record.model_dump_json(exclude_none=False) + "\n"


def write_records(path: Path, records: Iterable[AnyRecord]) -> None:
    """Replace a JSONL file whole or not at all, holding one record at a time."""
    with replacing(path) as file:
        for record in records:
            file.write(record_line(record).encode("utf-8"))


def read_records(path: Path, kind: type[AnyRecord]) -> Iterator[AnyRecord]:
    """Every record of a JSONL file. Raises DataError naming file and line."""
    return (record for _, record in placed_records(path, kind))


def placed_records(path: Path, kind: type[AnyRecord]) -> Iterator[tuple[int, AnyRecord]]:
    """Every record and the byte it begins at. Raises DataError naming file and line."""
    place = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield place, parse_record(line, kind, f"{path.name} line {number}")
                place += len(line)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def record_at(path: Path, place: int, kind: type[AnyRecord]) -> AnyRecord:
    """The record that begins at byte `place`. Raises DataError."""
    try:
        with path.open("rb") as file:
            file.seek(place)
            return parse_record(file.readline(), kind, f"{path.name} byte {place}")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def parse_record(line: str | bytes, kind: type[AnyRecord], place: str) -> AnyRecord:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "line"
        raise DataError(
            f"{place} is not a {kind.__name__.lower()}: {field}: {first['msg']}"
        ) from error


class AppendLog:
    """An append-only JSONL file with one writer. A torn last line is trimmed when it opens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
            self._trim_torn_line()
        except OSError as error:
            raise DiskError(f"cannot open {path}: {error.strerror}") from error
        self._unsynced = 0
        self._opened_s = self._synced_s = time.monotonic()

    def __enter__(self) -> AppendLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._file.closed:  # and could not be opened again, which was said
            return
        self._sync()
        self._file.close()

    def _trim_torn_line(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        position = size
        while position > 0:
            start = max(0, position - 65_536)
            self._file.seek(start)
            index = self._file.read(position - start).rfind(b"\n")
            if index >= 0:
                position = start + index + 1
                break
            position = start
        if position < size:
            self._file.truncate(position)
        self._file.seek(0, os.SEEK_END)

    def append(self, records: Iterable[BaseModel]) -> int:
        """Write the records' lines in one call; on failure the file is cut back to where it was.

        Returns the byte at which the first one begins.
        """
        raw = "".join(record_line(r) for r in records).encode("utf-8")
        start = self._file.tell()
        try:
            view = memoryview(raw)
            while view:
                view = view[self._file.write(view) or 0 :]
            self._unsynced += 1
            overdue = time.monotonic() - self._synced_s > SYNC_EVERY_S
            if self._unsynced >= SYNC_EVERY_RECORDS or overdue:
                self._sync()
                if self._synced_s - self._opened_s > CLOSED_EVERY_S:
                    self._open_again()
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # closed, and not to be opened again
                self._file.truncate(start)
                self._file.seek(start)
            raise DiskError(
                f"cannot append {len(raw)} bytes to {self.path}: {error.strerror}"
            ) from error
        return start

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0
        self._synced_s = time.monotonic()

    def _open_again(self) -> None:
        self._file.close()
        self._file = self.path.open("ab+", buffering=0)
        self._file.seek(0, os.SEEK_END)
        self._opened_s = time.monotonic()

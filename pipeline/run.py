"""A run directory: its lock, its log, and the proof that a stage is done.

A stage is done when its manifest is there, carries the fingerprint the stage would have now, and
every file it lists has the sha256 it lists. Manifests are written last. `scratch/` folders are no
proof.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, Field, ValidationError

from pipeline.memory import give_back_memory
from pipeline.progress import Progress
from pipeline.records import content_key
from pipeline.scale_options import ScaleOptions
from pipeline.stopwatch import Stopwatch
from pipeline.store import write_json
from pipeline.training_options import TrainingOptions
from serve.errors import BusyRun, DiskError, RetortError
from serve.hardware import device_name
from serve.messages import Record
from serve.models import content_sha256, file_sha256

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

log = logging.getLogger("retort")

SCRATCH, ABSENT = "scratch", "absent"
Counts = Mapping[str, Any]


class Manifest(Record):
    """Proof that a stage finished. Time, device and energy are for people, in no fingerprint.

    Time and energy count what killed processes spent on the stage (`pipeline/stopwatch.py`).
    `sources` has the sha256 of what people wrote outside of the run and the stage read.
    """

    stage: str
    fingerprint: str
    files: dict[str, str]
    sources: dict[str, str] = Field(default_factory=dict)
    counts: dict[str, Any]
    took_s: float = Field(ge=0)
    device: str = ""
    energy_j: float | None = None


@dataclass(frozen=True)
class Context:
    """What a stage is given beside its config and inputs."""

    seed: int
    progress: Progress
    log: logging.Logger = log
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    @classmethod
    def of(cls, recipe: Recipe, progress: Progress) -> Context:
        """That of a run of `recipe`."""
        return cls(recipe.run.seed, progress, scale=recipe.scale, training=recipe.training)


class StageModule(Protocol):
    """What a stage file offers. `LIBRARIES` are the packages whose version changes its numbers.

    `run(config, inputs, out, context)` writes only below `out` and returns counts for the manifest.
    """

    @property
    def STAGE_VERSION(self) -> int: ...  # noqa: N802

    @property
    def LIBRARIES(self) -> tuple[str, ...]: ...  # noqa: N802

    @property
    def run(self) -> Callable[..., Counts]: ...


@dataclass(frozen=True)
class Stage:
    """One line of the table of contents; `config` is what its fingerprint hashes.

    `files` names its outputs when it shares a folder with others (the report, in the run's root).
    `reads` names files in the run's root that people may write, and that it uses where they are.
    `sources` are files and folders of their own that its config names, among other things: what
    people wrote, and models that no hash was given for.
    """

    name: str
    module: StageModule
    config: BaseModel | tuple[BaseModel, ...]
    needs: tuple[str, ...]
    files: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def sources_now(self) -> dict[str, str]:
        """sha256 of those sources that are here: one that moved away since proves nothing."""
        there = [name for name in self.sources if Path(name).exists()]
        return {name: content_sha256(Path(name)) for name in there}

    def changed_source(self, manifest: Manifest) -> str | None:
        """The first source that is not as it was when the stage was done."""
        now = self.sources_now().items()
        return next((name for name, sha256 in now if manifest.sources.get(name) != sha256), None)


class RunDir:
    """`runs/NAME`: one folder a stage, `recipe.json`, `run.lock`, `logs/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: Stage) -> Path:
        return self.root if stage.files else self.root / stage.name

    def manifest_path(self, stage: Stage) -> Path:
        return self.folder(stage) / (
            f"{stage.name}.manifest.json" if stage.files else "manifest.json"
        )

    def manifest(self, stage: Stage) -> Manifest | None:
        """The stage's manifest if it can be read, whatever it proves."""
        try:
            return Manifest.model_validate_json(self.manifest_path(stage).read_bytes())
        except (OSError, ValidationError):
            return None

    def output_files(self, stage: Stage) -> list[Path]:
        folder = self.folder(stage)
        if stage.files:
            return [folder / name for name in stage.files]
        return sorted(
            path
            for path in folder.rglob("*")
            if path.is_file()
            and path != self.manifest_path(stage)
            and SCRATCH not in path.relative_to(folder).parts
        )

    def fingerprint(self, stage: Stage, inputs: Mapping[str, Manifest], seed: int) -> str:
        """sha256 over everything that could change the stage's bytes; never file times."""
        parts = stage.config if isinstance(stage.config, tuple) else (stage.config,)
        return content_key(
            stage.name,
            stage.module.STAGE_VERSION,
            seed,
            [part.model_dump(mode="json") for part in parts],
            {name: [m.fingerprint, m.files] for name, m in sorted(inputs.items())},
            {name: package_version(name) for name in stage.module.LIBRARIES},
            *(file_sha256(path) for path in self.found(stage).values()),
        )

    def found(self, stage: Stage) -> dict[str, Path]:
        """Those of the stage's `reads` that are there."""
        paths = {name: self.root / name for name in stage.reads}
        return {name: path for name, path in paths.items() if path.is_file()}

    def proven(self, stage: Stage, fingerprint: str) -> Manifest | None:
        """The manifest, if it proves that the stage is done as asked; otherwise None."""
        manifest = self.manifest(stage)
        if manifest is None or manifest.fingerprint != fingerprint:
            return None
        source = stage.changed_source(manifest)
        if source is not None:
            log.warning("%s: %s is another than before, doing it again", stage.name, source)
            return None
        folder = self.folder(stage)
        for name, sha256 in manifest.files.items():
            path = folder / name
            if not path.is_file() or file_sha256(path) != sha256:
                log.warning("%s: %s is missing or changed, doing the stage again", stage.name, name)
                return None
        return manifest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. Raises BusyRun when another one does."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DiskError(f"cannot open run folder {self.root}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(handle, 32).decode(errors="replace").strip()
                raise BusyRun(
                    f"run {self.root} is busy: process {owner} works in it",
                    hint="wait for it, or give this run another folder with --run",
                ) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def logged(self) -> Iterator[Path]:
        """One log file an attempt."""
        folder = self.root / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
            handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise DiskError(f"cannot write logs in {folder}: {error.strerror}") from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield path
        finally:
            root.removeHandler(handler)
            handler.close()


def run_stage(run: RunDir, stage: Stage, fingerprint: str, context: Context) -> Manifest:
    """Do one stage and write its manifest last. The caller has seen that it is not proven done."""
    out = run.folder(stage)
    log.info("%s starts, fingerprint %s", stage.name, fingerprint[:12])
    with Stopwatch(run.root / "logs" / f"{stage.name}.spent.json", fingerprint) as watch:
        try:
            out.mkdir(parents=True, exist_ok=True)
            run.manifest_path(stage).unlink(missing_ok=True)
            sources = stage.sources_now()
            inputs = {name: run.root / name for name in stage.needs} | run.found(stage)
            counts = stage.module.run(stage.config, inputs, out, context)
            give_back_memory()
            files = {str(p.relative_to(out)): file_sha256(p) for p in run.output_files(stage)}
        except RetortError:
            raise
        except Exception as error:
            raise _as_disk_error(error, out) or error from error
        spent = watch.spent()
        manifest = Manifest(
            stage=stage.name,
            fingerprint=fingerprint,
            files=files,
            sources=sources,
            counts=dict(counts),
            took_s=round(spent.took_s, 3),
            device=device_name(),
            energy_j=spent.energy_j,
        )
        write_json(run.manifest_path(stage), manifest.model_dump(mode="json"))
    log.info("%s done in %.1f s: %s", stage.name, manifest.took_s, manifest.counts)
    return manifest


def _as_disk_error(error: Exception, out: Path) -> DiskError | None:
    """Libraries report a full or broken disk in their own words."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
    if full or "No space left" in text or "File too large" in text:
        return DiskError(f"writing below {out} failed: {text}", hint="free space and run again")
    return None


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT

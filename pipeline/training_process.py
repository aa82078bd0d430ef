"""One of the processes that train together (`pipeline/spread.py` starts them).

    accelerate launch --config_file PLAN --module pipeline.training_process SftJob|ExactJob JOB

Reads the job, trains, gathers what was trained; the first process writes it. Standard output is for
JSON lines: a step each, then all rows, or an error.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pipeline.processors import share_processors
from pipeline.records import Example
from pipeline.spread import ExactJob, Job, SftJob
from pipeline.store import read_records
from serve.engines.child import die_with_parent, replies_apart
from serve.errors import RetortError

JOBS: dict[str, type[Job]] = {"SftJob": SftJob, "ExactJob": ExactJob}
OnStep = Callable[[int, float], None]


def main(kind: str, path: Path) -> int:
    """Train. The exit code is that of the error that was told."""
    die_with_parent()
    replies = replies_apart()
    logging.basicConfig(level=logging.WARNING)
    first = os.environ.get("RANK", "0") == "0"
    job = JOBS[kind].model_validate_json(path.read_text(encoding="utf-8"))

    def on_step(step: int, loss: float) -> None:
        if first:
            _tell(replies, step=step, loss=loss)

    try:
        share_processors(job.training.strategy)
        rows = _train(job, on_step)
    except RetortError as error:
        _tell(replies, error=type(error).__name__, message=str(error.args[0]), hint=error.hint)
        return error.exit_code
    if first:
        _tell(replies, rows=rows)
    return 0


def _train(job: Job, on_step: OnStep) -> list[dict[str, Any]]:
    return _sft(job, on_step) if isinstance(job, SftJob) else _exact(job, on_step)


def _sft(job: SftJob, on_step: OnStep) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    from pipeline.sft_trainer import build_trainer

    trainer = build_trainer(
        job.base,
        AutoTokenizer.from_pretrained(job.base, local_files_only=True),
        list(read_records(job.examples, Example)),
        job.options,
        job.scratch,
        job.seed,
        job.training,
    )
    trainer.watch(on_step)
    rows = trainer.run(job.resume)
    trainer.save(job.out)
    return rows


def _exact(job: Job, on_step: OnStep) -> list[dict[str, Any]]:
    from pipeline.exact import Exact

    assert isinstance(job, ExactJob)
    return Exact(job, on_step).practise()


def _tell(replies: TextIO, **said: Any) -> None:
    """One write a line: several processes share the pipe."""
    replies.write(json.dumps(said) + "\n")


def run(kind: str, path: Path) -> NoReturn:
    """`main`, and the end of this process with its exit code.

    The interpreter is not taken down: a thread of gloo's that lets go of its last tensor meanwhile
    aborts the process, and a training that came to its end counts as failed (pytorch/pytorch
    #179291). What libraries registered for the end is done all the same: handlers run in the order
    opposite to theirs, and this one is there before a training begins.
    """
    ended: list[int] = []

    def leave() -> None:
        if ended:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended[0])

    atexit.register(leave)
    ended.append(main(kind, path))
    sys.exit(ended[0])


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))

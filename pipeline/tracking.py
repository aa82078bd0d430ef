"""Where the numbers of every training step go as well: recipe field `training.report_to`.

TRL writes them for its trainers; here is where, and the same for practice that has a loop of its
own. TensorBoard's and trackio's files lie in the run's `logs/`, and so do wandb's until it sends
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.training_options import Tracker
from serve.errors import UsageError

PROJECT = "retort"
LOGS = "RETORT_LOGS"


def follow(trackers: Sequence[Tracker], logs: Path) -> None:
    """Before a run: every tracker is installed, and keeps its files below `logs`.

    What the environment already says of a tracker holds. Raises UsageError for a missing one.
    """
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise UsageError(
                f"training.report_to names {tracker}, which is not installed",
                hint=f"pip install {tracker}",
            )
    if not trackers:
        return
    folder, before = str(logs.resolve()), os.environ.get(LOGS)
    os.environ[LOGS] = folder
    for name, below in (("TRACKIO_DIR", "/trackio"), ("WANDB_DIR", "")):
        # Another run of this process may have said it, and this is another run.
        if os.environ.get(name) in (None, f"{before}{below}"):
            os.environ[name] = f"{folder}{below}"
    os.environ.setdefault("WANDB_PROJECT", PROJECT)


def followed(trackers: Sequence[Tracker], training: str) -> dict[str, Any]:
    """What a trainer's config says of it; `training` names the run there."""
    if not trackers:
        return {"report_to": "none"}
    if LOGS in os.environ:
        os.environ["TENSORBOARD_LOGGING_DIR"] = f"{os.environ[LOGS]}/tensorboard/{training}"
    return {"report_to": list(trackers), "run_name": training, "project": PROJECT}


@contextmanager
def following(
    trackers: Sequence[Tracker], training: str
) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """Takes numbers by name and their step, for a training that is no trainer's."""
    with ExitStack() as stack:
        told = [_started(name, training) for name in trackers]
        for tracker in told:
            stack.callback(tracker.finish)

        def tell(numbers: Mapping[str, float], step: int) -> None:
            for tracker in told:
                tracker.log(dict(numbers), step=step)

        yield tell


def _started(name: Tracker, training: str) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    PartialState()  # which their log messages ask for, and no trainer made in a resumed practice
    if name == "tensorboard":
        tracker = TensorBoardTracker(training, Path(os.environ.get(LOGS, "logs")) / name)
    else:
        kind = WandBTracker if name == "wandb" else TrackioTracker
        tracker = kind(os.environ.get("WANDB_PROJECT", PROJECT), name=training)
    tracker.start()
    return tracker

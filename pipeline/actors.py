"""Requests over the actors of a Ray cluster, an engine each; the answers one by one, back here.

Ray Data owns the actors: it starts them, hands each its shares, starts lost ones again where there
is room. An answer is back the moment it is written, so that an actor or a node that is lost costs
what it was writing and nothing else: the keys still missing after a pass are asked in another.

Every node sees the project and the run folder at the same paths.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.batches import batches_of, shares_of
from pipeline.scale_options import ScaleOptions
from serve.engines.base import Engine
from serve.errors import EngineEnded, EngineError, RetortError, UsageError
from serve.messages import Completion, Request

log = logging.getLogger("retort")

# One that waits at an actor is one that another, up a second later, does not get.
SHARES_PER_ACTOR = 1
REACHED_WITHIN_S = 10.0
# Variables that begin so: keys, caches, tokens and settings of engines.
HANDED_ON = ("RETORT_", "HF_", "VLLM_")
NODES_OWN = {"VLLM_HOST_IP", "VLLM_HOST_PORT", "VLLM_NIXL_SIDE_CHANNEL_HOST"}
INIT_DEATHS = 3


def spread(
    open_engine: Callable[[], Engine],
    requests: Sequence[Request],
    missing: Collection[str],
    scale: ScaleOptions,
) -> Iterator[tuple[str, Completion]]:
    """Answers to the `missing` of `requests` in the order they come; `open_engine` runs in every
    actor. A request answered in a block with its neighbours may come twice, with the same answer.

    Raises EngineError with the reason when an engine cannot answer, or when a whole pass over what
    is missing brought nothing.
    """
    left = set(missing)
    with _cluster(scale):
        while left:
            before, losses = len(left), list[str]()
            for key, completion in _one_pass(open_engine, requests, left, scale, losses):
                yield key, completion
                left.discard(key)
            why = f": {losses[-1]}" if losses else ""
            if len(left) == before:
                raise EngineError(
                    f"{before} requests were lost with their actors, and none was answered{why}",
                    hint="see the cluster's own logs for why its processes end",
                )
            if left:
                log.warning(
                    "%d answers were lost with their actors, asking again%s", len(left), why
                )


def _one_pass(
    open_engine: Callable[[], Engine],
    requests: Sequence[Request],
    missing: Collection[str],
    scale: ScaleOptions,
    losses: list[str],
) -> Iterator[tuple[str, Completion]]:
    """Answers until no actor holds a share; those of lost actors are missing, as are those of lost
    engines, of which `losses` says how they ended."""
    import ray

    # No actor without work; cut from all requests, as `shares_of` does, not from what is missing.
    size = min(scale.batch_requests, math.ceil(len(requests) / scale.actors))
    shares = [
        {"share": json.dumps([r.model_dump(mode="json") for r in share]), "wanted": wanted}
        for share, wanted in shares_of(requests, missing, size)
    ]
    with warnings.catch_warnings():
        # max_task_retries is none of the parameters that Ray will keep by name, and has no other.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        found = ray.data.from_items(shares, override_num_blocks=len(shares)).flat_map(
            Answering,
            fn_constructor_args=(open_engine, os.getcwd(), _handed_on(scale)),
            compute=ray.data.ActorPoolStrategy(
                size=min(scale.actors, len(shares)), max_tasks_in_flight_per_actor=SHARES_PER_ACTOR
            ),
            num_cpus=scale.cpus_per_actor,
            num_gpus=scale.gpus_per_actor,
            # A task that Ray repeats would write again what is here already.
            max_task_retries=0,
        )
    try:
        for row in found.iter_rows():
            if row["lost"]:
                losses.append(row["lost"])
            elif row["error"]:
                raise EngineError(row["error"], hint=row["hint"] or None)
            else:
                yield row["key"], Completion.model_validate_json(row["completion"])
    except ray.exceptions.ObjectLostError as error:
        # Answers that lay on a node when it went, too large to have been sent along.
        losses.append(_first_line(error))
    except ray.exceptions.RayError as error:
        raise EngineError(f"the Ray cluster gave up: {_first_line(error)}") from error


def _handed_on(scale: ScaleOptions) -> dict[str, str]:
    """What engines read of this process's environment; an actor has that of its node."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(HANDED_ON) and name not in NODES_OWN) or name in scale.environment
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class Answering:
    """What an actor does: it opens the engine once and answers shares.

    An engine whose process ended is opened again for the next share; the rest of this one is lost.
    """

    def __init__(
        self, open_engine: Callable[[], Engine], folder: str, environment: Mapping[str, str]
    ) -> None:
        os.chdir(folder)  # paths in recipes are relative to where the run was started
        os.environ.update(environment)
        self._open = open_engine
        self._engine: Engine | None = None

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, str]]:
        share = [Request.model_validate(r) for r in json.loads(row["share"])]
        wanted = set(row["wanted"])
        try:
            if self._engine is None:
                self._engine = self._open()
            for batch in batches_of(self._engine, share, wanted):
                for key, completion in self._engine.generate(batch):
                    yield _row(key=key, completion=completion.model_dump_json())
        except EngineEnded as error:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            yield _row(lost=str(error.args[0]))
        except RetortError as error:
            yield _row(error=str(error.args[0]), hint=error.hint or "")
        except Exception as error:
            # Ray would take it for a lost actor, and the share would be asked again and again.
            yield _row(error=f"{type(error).__name__}: {error}")


def _row(**given: str) -> dict[str, str]:
    return {"key": "", "completion": "", "error": "", "hint": "", "lost": ""} | given


@contextmanager
def _cluster(scale: ScaleOptions) -> Iterator[None]:
    """Connected to the recipe's cluster, or to one of this process's own for as long as needed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError(
            'package ray is not installed, which scale.executor = "ray" needs',
            hint="pip install '.[ray]' in the project's folder",
        ) from None
    _check_reachable(scale.address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=scale.address or "local",
            include_dashboard=None if scale.address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(scale.address, error) from error
    try:
        for number, handler in handlers.items():  # Ray puts one of its own in place
            signal.signal(number, handler)
        _settings(ray.data.DataContext.get_current(), scale)
        _check_room(ray.nodes(), scale)
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Ray itself tries for minutes before it says so."""
    # ray://… has a port of its own; auto is no place to knock at.
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        place = (host.strip("[]"), int(port))
        socket.create_connection(place, timeout=REACHED_WITHIN_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> EngineError:
    return EngineError(
        f"no Ray cluster at {address}: {error}", hint="start it with `ray start --head`"
    )


def _check_room(nodes: Sequence[dict[str, Any]], scale: ScaleOptions) -> None:
    """Ray waits for ever, and in silence, for a node that an actor fits on; and lets actors that
    ask for no GPU see all of a node's."""
    wanted = {"CPU": scale.cpus_per_actor, "GPU": scale.gpus_per_actor}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if scale.actors > 1 and not scale.gpus_per_actor and any(n.get("GPU", 0) for n in alive):
        raise UsageError(
            f"scale.gpus_per_actor is 0: {scale.actors} actors would all take the same GPU",
            hint="scale.gpus_per_actor = 1, or a share of one",
        )
    if any(all(node.get(k, 0) >= n for k, n in wanted.items()) for node in alive):
        return
    told = f"an actor wants {wanted['CPU']:g} processors and {wanted['GPU']:g} GPUs of one node"
    most = ", ".join(f"{n.get('CPU', 0):g} and {n.get('GPU', 0):g}" for n in alive) or "none"
    if scale.address is None:
        raise EngineError(f"{told}, this machine has {most}")
    print(f"warning: {told}, its nodes have {most}: waiting for another", file=sys.stderr)


def _settings(context: Any, scale: ScaleOptions) -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.target_max_block_size = 1  # a block an answer: it comes back when it is written
    context.max_errored_blocks = -1  # shares of lost actors, asked again
    # Processes that crash while they start, in a row, of all that start at once.
    context.max_consecutive_actor_init_deaths = INIT_DEATHS * scale.actors
    context.enable_progress_bars = False
    context.print_on_execution_start = False

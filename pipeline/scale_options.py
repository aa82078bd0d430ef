"""How far a run is spread: recipe section `scale`."""

from __future__ import annotations

import operator
from typing import Literal

from pydantic import Field

from serve.messages import Record


class ScaleOptions(Record):
    """In no fingerprint: where answers are computed changes no answer."""

    executor: Literal["local", "ray"] = Field(
        "local", description="ray: what is asked goes to actors with an engine each"
    )
    address: str | None = Field(
        None, description="ray: of a running cluster, as auto; none: one on this machine"
    )
    actors: int = Field(1, ge=1, le=4096, description="ray: engines at work at a time")
    cpus_per_actor: float = Field(1.0, gt=0.0, le=1024.0, description="ray: processors")
    gpus_per_actor: float = Field(0.0, ge=0.0, le=64.0, description="ray: GPUs")
    environment: tuple[str, ...] = Field(
        (),
        exclude_if=operator.not_,
        description="ray: variables that actors get from here, besides RETORT_, HF_ and VLLM_",
    )
    batch_requests: int = Field(
        512, ge=1, le=100_000, description="ray: most requests handed to an actor at a time"
    )

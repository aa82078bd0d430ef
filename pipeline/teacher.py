"""Opens the recipe's teacher as an engine."""

from __future__ import annotations

from pipeline.recipe import TeacherOptions
from serve.engines import load_engine
from serve.engines.base import Engine
from serve.models import resolve_model


def teacher_identity(teacher: TeacherOptions) -> str:
    """Which model answers, in which runtime: part of every trace's key."""
    return f"{teacher.engine}:{teacher.model}@{teacher.sha256 or 'unpinned'}"


def open_teacher(teacher: TeacherOptions) -> Engine:
    """The teacher, its file hashed before it loads.

    Raises UntrustedFile on another sha256, EngineError when it does not load.
    """
    if teacher.engine == "http":
        return load_engine(
            "http",
            base_url=teacher.base_url,
            model=teacher.model,
            api_key_env=teacher.api_key_env,
            concurrency=teacher.slots,
            token_budget=teacher.token_budget,
        )
    return load_engine(
        teacher.engine,
        path=resolve_model(teacher.model, teacher.sha256),
        slots=teacher.slots,
        context_tokens=teacher.context_tokens,
    )

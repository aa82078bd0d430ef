"""ENGINES: engine name -> the module that holds its `load`.

Importing this imports no model library.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from serve.engines.base import Engine
from serve.errors import UsageError

ENGINES = {
    "llama.cpp": "serve.engines.llama_cpp",
    "onnxruntime-genai": "serve.engines.onnx",
    "onnxruntime": "serve.engines.onnx_plain",
    "transformers": "serve.engines.transformers",
    "vllm": "serve.engines.vllm",
    "http": "serve.engines.http",
}


def load_engine(name: str, **options: Any) -> Engine:
    """The engine called `name`, ready to answer. Raises UsageError for a name that is not there."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", hint=f"one of {', '.join(ENGINES)}")
    engine: Engine = engine_module(ENGINES[name]).load(**options)
    return engine


def engine_module(module: str) -> ModuleType:
    """The module of an engine. Raises UsageError when its library is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"package {error.name} is not installed, which {module} needs",
            hint="pip install '.[serve,cpu]' in the project's folder",
        ) from error

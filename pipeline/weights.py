"""How many weights a model has, read from the shapes its files declare."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from pipeline.recipe import Recipe
from serve.models import resolve_model


def tensor_sizes(checkpoint: Path) -> dict[str, int]:
    """Elements of every tensor of a safetensors checkpoint; tied ones stand there once."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 not a dictionary
                sizes[name] = math.prod(file.get_slice(name).get_shape())
    return sizes


def parameters_of(checkpoint: Path) -> int:
    """All weights of a checkpoint, tied ones once."""
    return sum(tensor_sizes(checkpoint).values())


def multiplied_weights(checkpoint: Path) -> int:
    """Weights of a checkpoint that every token is multiplied with."""
    sizes = tensor_sizes(checkpoint)
    looked_up = sum(n for name, n in sizes.items() if name.endswith("embed_tokens.weight"))
    head = any(name.endswith("lm_head.weight") for name in sizes)
    return sum(sizes.values()) - (looked_up if head else 0)


def teacher_weights(recipe: Recipe, of: Callable[[Path], int] = multiplied_weights) -> int | None:
    """Of a local teacher, a checkpoint counted by `of`; None where a server does not say."""
    if recipe.teacher.engine == "http":
        return None
    path = resolve_model(recipe.teacher.model, recipe.teacher.sha256)
    if path.is_dir():
        return of(path)
    from quant.inspect import inspect_gguf

    return inspect_gguf(path).weights

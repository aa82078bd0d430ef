"""How fast a forecast takes work to be: operations a second, and seconds a token.

Orders of magnitude; where each number comes from stands beside it.
"""

from __future__ import annotations

import math

from pipeline.model_shapes import Model
from pipeline.recipe import Recipe
from serve.hardware import cores, cpu_flags

FORWARD, TRAINING, TRAINING_AGAIN = 2, 6, 8
# Shares of peak: serving reports of vLLM, training reports of PaLM-like runs (0.35 to 0.5).
DECODING, READING, LEARNING = 0.15, 0.5, 0.35
# Of one core, 10^12 operations a second, bfloat16 where it has it (docs/notes.md).
CORE_TFLOPS = {"amx_bf16": 0.5, "avx512_bf16": 0.2}
PLAIN_CORE_TFLOPS, SERVER_FLAG = 0.08, "avx512_bf16"
CORE_SHARE = 0.4
# Of an answer's limit that it takes.
ANSWERED = 0.35
# A layer of a model that transformers runs token by token: 30 to 40 ms of 30 layers on an H200,
# whatever the rows (docs/performance.md). Of one in vLLM's graphs, and what vLLM takes to read
# other weights: guesses, not measured here.
LAYER_S, GRAPH_LAYER_S, RELOAD_S = 1.1e-3, 1.5e-4, 10.0


def rate(recipe: Recipe, devices: int, share: float, on_cores: float | None = None) -> float:
    """Operations a second of so many GPUs, or of cores: so many, or the machine's without GPUs."""
    if on_cores is not None or not recipe.hardware.gpus:
        return core_rate(recipe, cores_of(recipe) if on_cores is None else on_cores)
    return min(devices, recipe.hardware.gpus) * (recipe.hardware.gpu_tflops or 0.0) * 1e12 * share


def core_rate(recipe: Recipe, count: float) -> float:
    """Of so many cores, taken to multiply bfloat16 where the recipe tells of them."""
    flags = frozenset({SERVER_FLAG}) if recipe.hardware.cores else cpu_flags()
    each = next((t for flag, t in CORE_TFLOPS.items() if flag in flags), PLAIN_CORE_TFLOPS)
    return count * each * 1e12 * CORE_SHARE


def cores_of(recipe: Recipe) -> float:
    """The recipe's, or this machine's."""
    return recipe.hardware.cores or cores()


def cores_of_actors(recipe: Recipe) -> float:
    """Those that answer where actors do; on a cluster of unknown size, all that they want."""
    scale = recipe.scale
    if scale.executor != "ray":
        return cores_of(recipe)
    wanted = scale.actors * scale.cpus_per_actor
    unknown = scale.address is not None and recipe.hardware.cores is None
    return wanted if unknown else min(cores_of(recipe), wanted)


def in_blocks_s(
    recipe: Recipe,
    model: Model,
    answers: int,
    devices: int,
    rows: int,
    limit: int,
    on_cores: float,
) -> float:
    """Seconds of answers that transformers writes on devices that share them, so many rows at a
    time: a block is as long as its longest, which of many is at the limit; a token of all of them
    takes its layers' launches.

    `on_cores`: those that do it, all together, where no GPU does.
    """
    if not recipe.hardware.gpus:
        written = FORWARD * model.multiplied * answers * ANSWERED * limit
        return written / core_rate(recipe, on_cores)
    return math.ceil(math.ceil(answers / devices) / rows) * limit * step_s(recipe, model, LAYER_S)


def step_s(recipe: Recipe, model: Model, layer_s: float) -> float:
    """Of one token for all rows on a GPU."""
    bandwidth = recipe.hardware.gpu_gb_per_s or math.inf
    layers = model.shape.layers if model.shape else 0
    return max(layer_s * layers, model.weights_bytes / 1e9 / bandwidth)

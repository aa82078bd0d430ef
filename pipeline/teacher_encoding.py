"""What the teacher's weights are written as, for speed on this machine's processor.

A four-bit file is small and decodes fast for one reader, but collecting and grading read many rows
at a time: then arithmetic counts, and unpacking is arithmetic. docs/notes.md has the figures.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from pipeline.forecast_memory import GIB, machine_gib
from pipeline.model_shapes import Model, model_at
from pipeline.recipe import TeacherOptions
from serve.hardware import cpu_flags

AS_IT_IS = "as it is"
# Bits a weight of a file: Q8_0 has a scale of 16 bits for every 32 weights, and norms in float32.
BITS = {"Q8_0": 8.51, "F16": 16.0}
# The copy is read into memory beside whatever is trained meanwhile.
MEMORY_SHARE = 0.25


def encoding(teacher: TeacherOptions) -> str:
    """What the weights are written as on this machine: "as it is" or a GGUF type."""
    if teacher.encoding != "auto":
        return teacher.encoding
    if teacher.engine != "llama.cpp":
        return AS_IT_IS
    return fastest(cpu_flags(), model_at(teacher.model), machine_gib())


def fastest(flags: Set[str], model: Model, memory_gib: float) -> str:
    """For many rows at a time, among the copies that take no more than a quarter of the memory."""
    wanted = AS_IT_IS
    if "amx_int8" in flags:
        wanted = "Q8_0"
    elif {"avx2", "f16c"} <= flags and not flags & {"avx512_vnni", "avx_vnni"}:
        # Without VNNI a product of bytes takes three instructions, of floats one.
        wanted = "F16"
    if wanted == AS_IT_IS or not model.parameters or BITS[wanted] <= model.bits:
        return AS_IT_IS
    fits = replace(model, bits=BITS[wanted]).weights_bytes <= MEMORY_SHARE * memory_gib * GIB
    return wanted if fits else AS_IT_IS


def encoded(teacher: TeacherOptions) -> Model:
    """The teacher as it answers here: its size is that of the copy."""
    model, written = model_at(teacher.model), encoding(teacher)
    return model if written == AS_IT_IS else replace(model, bits=BITS[written])

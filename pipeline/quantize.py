"""Stage 06: the student's checkpoint becomes GGUF files.

Reads the trained student; writes `student-TYPE.gguf`, `student-Bbpw.gguf` for a budget of B bits a
weight, and `imatrix.gguf`, the importance matrix of the student on what it writes itself, which
every quantized file is written with, before GPTQ rounds its weights on the same texts. Judging what
the files kept is the task of the evaluation and the gate.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.calibration import calibration_sequences, load_student
from pipeline.examine import final_checkpoint
from pipeline.recipe import GgufOptions
from pipeline.run import Context
from pipeline.store import write_json
from quant import imatrix
from quant.budget import allocate, groups_of, overrides_of
from quant.gguf import Encoding, architecture_of, convert, gguf_name, quantize
from quant.gguf_reader import EMBEDDING
from quant.inspect import inspect_gguf
from quant.round_gguf import round_again
from quant.sensitivity import price_groups, rounds_of
from serve.hardware import cores
from serve.models import file_sha256

STAGE_VERSION = 5
LIBRARIES = ("llama-cpp-python", "gguf", "torch", "transformers")
NAME, FULL = "student", "F16"
# Rounding Q8_0 again moves its divergence from 0.0004 to 0.0003 nats: not worth the time; of Q2_K
# nobody here knows the layout.
FINE = {gguf_name(NAME, kind) for kind in ("F32", "BF16", "Q8_0", "Q2_K")}
# llama.h: what a file's type says of itself is a guess.
GUESSED = 1024
IMATRIX_FILE = "imatrix.gguf"
DATASET = "own texts, chat template applied"


def run(
    config: GgufOptions, inputs: Mapping[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Write one file a type and one a budget. Raises EngineError when one cannot be made."""
    shutil.rmtree(out)
    out.mkdir()
    checkpoint = final_checkpoint(inputs)
    with (
        tempfile.TemporaryDirectory(dir=out, prefix=".f16-") as folder,
        context.progress.bar("quantizing", 4 + len(config.types) + 4 * len(config.bits)) as bar,
    ):
        full = Path(folder) / gguf_name(NAME, FULL)
        convert(checkpoint, full)
        bar.advance(1)
        fitted = bool(config.imatrix_tokens or config.gptq_tokens)
        model = load_student(checkpoint) if fitted else None
        plain = _encoding(config, model, checkpoint, full, out)
        bar.advance(1)
        for kind in config.types:
            if kind != FULL:
                overrides = tuple((o.pattern, o.type) for o in config.overrides)
                _write(full, out / gguf_name(NAME, kind), config, plain, kind, overrides)
            bar.advance(1)
        if config.bits:
            _write_budgets(config, checkpoint, full, plain, out)
            bar.advance(4 * len(config.bits))
        coarse = [p for p in sorted(out.glob(f"{NAME}-*.gguf")) if _rounds(config, p)]
        if coarse:
            round_again(coarse, full, model, calibration_sequences(checkpoint, config.gptq_tokens))
        bar.advance(2)
        if FULL in config.types:
            os.replace(full, out / gguf_name(NAME, FULL))
    files = sorted(out.glob(f"{NAME}-*.gguf"))
    return {"size_bytes": {f.name: f.stat().st_size for f in files}}


def _write(
    full: Path,
    path: Path,
    config: GgufOptions,
    plain: Encoding,
    file_type: str,
    overrides: tuple[tuple[str, str], ...],
) -> None:
    """One file of the student, which says how much it will be rounded on."""
    metadata = {**plain.metadata, "retort.gptq.tokens": config.gptq_tokens * _rounds(config, path)}
    if path.name.endswith("bpw.gguf"):  # of several types: not what it was begun as
        metadata["general.file_type"] = GUESSED
    changes = {"file_type": file_type, "overrides": overrides, "metadata": metadata}
    quantize(full, path, plain.model_copy(update=changes), cores())


def _rounds(config: GgufOptions, path: Path) -> bool:
    return config.gptq_tokens > 0 and (path.name not in FINE or bool(config.overrides))


def _encoding(config: GgufOptions, model: Any, checkpoint: Path, full: Path, out: Path) -> Encoding:
    """What all quantized files have in common: the importance matrix, and what they say of it."""
    if not config.imatrix_tokens:
        return Encoding(file_type=FULL)
    sequences = calibration_sequences(checkpoint, config.imatrix_tokens)
    matrix = imatrix.collect(model, sequences, architecture_of(full), DATASET)
    path = out / IMATRIX_FILE
    imatrix.write(matrix, path)
    # The first key is llama.cpp's own; its strings end at 127 bytes.
    metadata: dict[str, str | int] = {
        "quantize.imatrix.dataset": DATASET,
        "retort.imatrix.tokens": matrix.tokens,
        "retort.imatrix.sha256": file_sha256(path),
    }
    return Encoding(file_type=FULL, imatrix=path, metadata=metadata)


def _write_budgets(
    config: GgufOptions, checkpoint: Path, full: Path, plain: Encoding, out: Path
) -> None:
    """One file a budget, and `sensitivity.json` with what every group costs in every type."""
    rounds = []
    for number, overrides in enumerate(rounds_of(full)):
        rounds.append(full.with_name(f"round-{number}.gguf"))
        everything = plain.model_copy(update={"file_type": "Q8_0", "overrides": overrides})
        quantize(full, rounds[-1], everything, cores())
    model = load_student(checkpoint, fast=False)
    if config.gptq_tokens:
        round_again(rounds, full, model, calibration_sequences(checkpoint, config.gptq_tokens))
    matrix = imatrix.read(out / IMATRIX_FILE)
    sequences = calibration_sequences(checkpoint, config.sensitivity_tokens)
    prices = price_groups(model, full, rounds, matrix, sequences)
    write_json(
        out / "sensitivity.json",
        {g: {k: p._asdict() for k, p in kinds.items()} for g, kinds in prices.items()},
    )
    report = inspect_gguf(full)
    groups = groups_of(sorted({*matrix.mean_squares, EMBEDDING}), report.blocks)
    kept_apart = report.unquantized_bytes
    for bits in config.bits:
        chosen = allocate(prices, int(bits * report.weights / 8) - kept_apart)
        path = out / gguf_name(NAME, f"{bits:g}bpw")
        _write(full, path, config, plain, "Q8_0", overrides_of(chosen, groups))

"""What the quantized files of a run keep, beside llama.cpp's plain ones, and what proving it costs.

    python -m benchmarks.quant runs/default [--items 150] [--bits 5.5]

Divergence of every file along the same held-out answers; one GGUF asked in a batch and one request
at a time; the time a gate of the run's artifacts took.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.peer import one_at_a_time
from pipeline.examine import artifact_rungs, final_checkpoint, inputs_of
from pipeline.gate import reference_for
from pipeline.progress import Progress
from pipeline.prompts import student_messages
from pipeline.quantize import run as quantize_stage
from pipeline.recipe import Recipe
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.store import read_records
from quant.divergence import Divergence
from quant.gguf import Encoding, convert, quantize
from quant.inspect import inspect
from quant.proof import Reference, prove
from serve.engines.child import load_in_child
from serve.hardware import cores
from serve.messages import Request, Sampling

COMPARED = ("Q4_K_M", "Q4_0")
RATIO_TARGET, BATCH_TARGET, GATE_TARGET_S = 0.7, 4.0, 360.0


def divergence(path: Path, reference: Reference) -> dict[str, Divergence]:
    proof = prove(
        path,
        lambda: load_in_child("llama.cpp", path=path, slots=4, context_tokens=1024),
        reference,
        exact=False,
    )
    assert proof.divergence is not None, proof.fault
    return proof.divergence


def plain_beside_ours(full: Path, folders: list[Path], reference: Reference, out: Path) -> None:
    """llama.cpp's plain file, ours, and every other file of the run, smallest first."""
    print("file                     MB   bits   KL nats   p99    top-1   KL numbers")
    rows = {}
    for kind in COMPARED:
        path = out / f"plain-{kind}.gguf"
        quantize(full, path, Encoding(file_type=kind), cores())
        rows[f"plain {kind}"] = path
    for folder in folders:
        rows |= {f"ours {p.stem.partition('-')[2]}": p for p in folder.glob("student-*.gguf")}
    nats: dict[str, float] = {}
    for name, path in sorted(rows.items(), key=lambda row: row[1].stat().st_size):
        found = divergence(path, reference)
        every, numbers = found["all"], found["number"]
        nats[name] = every.mean_nats
        print(
            f"{name:20} {path.stat().st_size / 1e6:6.1f} {inspect(path).bits_per_weight:6.2f} "
            f"{every.mean_nats:9.4f} {every.p99_nats:7.3f} {100 * every.top1_share:6.1f} % "
            f"{numbers.mean_nats:9.4f}"
        )
    for kind in COMPARED:
        ratio = nats[f"ours {kind}"] / nats[f"plain {kind}"]
        print(f"{kind}: {ratio:.2f} of the plain file's divergence (target {RATIO_TARGET})")


def budgets(bits: list[float], recipe: Recipe, root: Path, out: Path) -> list[Path]:
    """A folder with one file a budget, as the quantizing stage writes it."""
    if not bits:
        return []
    (out / "budgets").mkdir()
    options = recipe.gguf.model_copy(update={"types": ("Q8_0",), "bits": tuple(bits)})
    context = Context(seed=recipe.run.seed, progress=Progress())
    started_s = time.monotonic()
    quantize_stage(options, inputs_of(root), out / "budgets", context)
    print(f"budgets {bits}: written in {time.monotonic() - started_s:.0f} s")
    (out / "budgets" / "student-Q8_0.gguf").unlink()
    return [out / "budgets"]


def batch_beside_single(recipe: Recipe, path: Path, problems: list[Problem]) -> None:
    """Seconds to answer the same items in a batch, one request after the other in the library's own
    chat call, and so in our stream."""
    requests = [
        Request(
            key=p.key,
            messages=student_messages(recipe.student, p.question),
            sampling=Sampling(max_tokens=recipe.evaluate.max_tokens),
        )
        for p in problems
    ]
    took_s = []
    for slots in (recipe.evaluate.slots, 4):
        engine = load_in_child("llama.cpp", path=path, slots=slots, context_tokens=1024)
        with closing(engine):
            started_s = time.monotonic()
            if slots > 4:
                assert len(dict(engine.generate(requests))) == len(requests)
            else:
                for request in requests:
                    list(engine.stream(request))
            took_s.append(time.monotonic() - started_s)
    batched_s, streamed_s = took_s
    peer_s, _ = one_at_a_time(path, requests)
    print(
        f"{path.name}, {len(requests)} items: batched {batched_s:.1f} s; one at a time "
        f"{peer_s:.1f} s: {peer_s / batched_s:.1f}x (target {BATCH_TARGET:g}); "
        f"one at a time in our stream {streamed_s:.1f} s: {streamed_s / batched_s:.1f}x"
    )


def gate_time(root: Path) -> None:
    """What asking, proving and judging the artifacts took in the run."""
    evaluation, gate = (
        json.loads((root / stage / "manifest.json").read_text(encoding="utf-8"))
        for stage in ("08-evaluate", "09-gate")
    )
    asked = {
        name: took_s
        for name, took_s in evaluation["counts"]["took_s"].items()
        if name.startswith(("GGUF", "ONNX"))
    }
    print(f"{len(asked)} artifacts: asked in {sum(asked.values()):.0f} s ({asked}),")
    print(f"proven and judged in {gate['took_s']:.0f} s (target for six {GATE_TARGET_S:g} s)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quant")
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=150)
    parser.add_argument("--bits", type=float, nargs="*", default=[])
    options = parser.parse_args()
    root: Path = options.run
    recipe = Recipe.model_validate_json((root / "recipe.json").read_text(encoding="utf-8"))
    inputs = inputs_of(root)
    print(describe("llama-cpp-python", "onnxruntime-genai", "torch"))
    gate_time(root)
    with tempfile.TemporaryDirectory() as folder:
        full = root / "06-gguf" / "student-F16.gguf"
        if not full.exists():
            full = Path(folder) / full.name
            convert(final_checkpoint(inputs), full)
        config = (recipe.student, recipe.evaluate, recipe.gate)
        reference = reference_for(config, inputs, Path(folder))
        ours = [root / "06-gguf", *budgets(options.bits, recipe, root, Path(folder))]
        plain_beside_ours(full, ours, reference, Path(folder))
    problems = list(read_records(root / "01-problems" / "eval.jsonl", Problem))[: options.items]
    rungs = artifact_rungs(inputs, recipe.student, recipe.evaluate)
    for rung in rungs:
        if rung.engine == "llama.cpp" and rung.name != "GGUF F16":
            batch_beside_single(recipe, rung.path, problems)
    print(describe("llama-cpp-python"))


if __name__ == "__main__":
    main()

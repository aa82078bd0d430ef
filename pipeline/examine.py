"""One model answers a set of problems and is judged: what evaluation and gate both do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.asking import ask, request_for
from pipeline.budget_forcing import waited
from pipeline.ladder import BASE, Judged
from pipeline.prompts import student_messages
from pipeline.recipe import EvaluateOptions, StudentOptions
from pipeline.records import Problem, content_key
from pipeline.run import ABSENT, SCRATCH, Context, package_version
from pipeline.student import student_checkpoint, student_identity
from pipeline.tasks.judge import Judge
from serve.engines import load_engine
from serve.engines.base import Engine
from serve.engines.child import ChildEngine, load_in_child
from serve.messages import Completion, Message, Request, Sampling
from serve.models import artifact_bytes, artifact_sha256, file_sha256

SFT, ON_POLICY = "SFT student", "on-policy student"
SFT_STAGE, ON_POLICY_STAGE = "04-sft", "05-on-policy"
LEAST_CONTEXT_TOKENS = 1024
# Whose releases may answer otherwise.
RUNTIMES = {
    "llama.cpp": ("llama-cpp-python",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-genai": (
        "onnxruntime-genai",
        "onnxruntime-genai-cuda",
        "onnxruntime",
        "onnxruntime-gpu",
    ),
    "transformers": ("transformers", "torch"),
}
# What a chat opens: the memory of one conversation, not of an evaluation.
ALONE_SLOTS = 4
# For a file to load and a batch to be read, plus a second for each token of an answer.
SILENCE_LIMIT_S = 300.0


def inputs_of(root: Path) -> dict[str, Path]:
    """The folders of a finished run as its later stages are given them."""
    return {path.name: path for path in root.iterdir() if path.is_dir()}


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: who answers, in which prompt style, from which file.

    `context_tokens`: of an engine whose context is a choice of its own (`pipeline/asking.py`).
    """

    name: str
    identity: str
    size_bytes: int | None
    open: Callable[[], Engine]
    messages: Callable[[Problem], tuple[Message, ...]]
    context_tokens: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class ArtifactRung(Rung):
    """A rung that is a file, opened in a process of its own."""

    open: Callable[[], ChildEngine]
    open_alone: Callable[[], ChildEngine]
    path: Path
    engine: str

    @property
    def sha256(self) -> str:
        """Of the artifact: hashed once, for its identity."""
        return self.identity.rpartition(":")[2]


def context_of(options: EvaluateOptions) -> int:
    """Room for prompt and answer of one sequence, tokens."""
    return max(LEAST_CONTEXT_TOKENS, 2 * options.max_tokens)


def open_checkpoint(folder: Path, options: EvaluateOptions) -> Engine:
    # A block is not refilled as its answers end, so it is larger: 450 against 400 tok/s.
    return load_engine(
        "transformers", path=folder, slots=2 * options.slots, context_tokens=context_of(options)
    )


def final_checkpoint(inputs: Mapping[str, Path]) -> Path:
    """The student as it will be quantized: after practice, where the recipe has any."""
    return inputs[ON_POLICY_STAGE if ON_POLICY_STAGE in inputs else SFT_STAGE]


def reference_name(inputs: Mapping[str, Path]) -> str:
    """The rung that artifacts are compared with."""
    return ON_POLICY if ON_POLICY_STAGE in inputs else SFT


def checkpoint_rung(folder: Path, student: StudentOptions, options: EvaluateOptions) -> Rung:
    """The trained student before any quantization."""
    weights = folder / "model.safetensors"
    return Rung(
        ON_POLICY if folder.name == ON_POLICY_STAGE else SFT,
        f"{_runtime('transformers')}:{file_sha256(weights)}",
        weights.stat().st_size,
        lambda: open_checkpoint(folder, options),
        lambda p: student_messages(student, p.question),
    )


def base_rung(student: StudentOptions, options: EvaluateOptions) -> Rung:
    """The student before any training."""
    return Rung(
        BASE,
        f"{_runtime('transformers')}:{student_identity(student)}",
        None,
        lambda: open_checkpoint(student_checkpoint(student), options),
        lambda p: student_messages(student, p.question),
    )


def artifact_rungs(
    inputs: Mapping[str, Path], student: StudentOptions, options: EvaluateOptions
) -> list[ArtifactRung]:
    """Every student GGUF, then every ONNX folder, largest first."""
    return [
        ArtifactRung(
            name=f"{format_name} {path.name.removesuffix('.gguf').partition('-')[2]}",
            identity=f"{_runtime(engine_for(path))}:{artifact_sha256(path)}",
            size_bytes=artifact_bytes(path),
            open=_opener(path, options.slots, options),
            open_alone=_opener(path, ALONE_SLOTS, options),
            messages=lambda p: student_messages(student, p.question),
            path=path,
            engine=engine_for(path),
        )
        for format_name, stage in (("GGUF", "06-gguf"), ("ONNX", "07-onnx"))
        for path in sorted(
            inputs[stage].glob("student-*"), key=lambda p: (-artifact_bytes(p), p.name)
        )
    ]


def engine_for(artifact: Path) -> str:
    """The runtime an artifact was written for."""
    if artifact.is_file():
        return "llama.cpp"
    return "onnxruntime-genai" if (artifact / "genai_config.json").exists() else "onnxruntime"


def _runtime(engine: str) -> str:
    """With the releases that answer: another one is asked again, or it would go unexamined."""
    here = (package_version(name) for name in RUNTIMES[engine])
    return " ".join([engine, *(release for release in here if release != ABSENT)])


def _opener(path: Path, slots: int, options: EvaluateOptions) -> Callable[[], ChildEngine]:
    return lambda: load_in_child(
        engine_for(path),
        path=path,
        slots=slots,
        context_tokens=context_of(options),
        silence_limit_s=SILENCE_LIMIT_S + options.max_tokens,
    )


def examine(
    rung: Rung,
    problems: Sequence[Problem],
    options: EvaluateOptions,
    out: Path,
    judge: Judge,
    context: Context,
) -> list[Judged]:
    """All verdicts of one rung: sample 0 is greedy, 1 to k are drawn."""
    asked: dict[str, tuple[Problem, int]] = {}
    requests: list[Request] = []
    for index, problem in enumerate(problems):
        for sample in range(1 + (options.k if index < options.k_items else 0)):
            request = request_for(
                rung.identity,
                rung.messages(problem),
                sampling_of(options, context.seed, problem.key, sample),
                sample,
            )
            asked[request.key] = (problem, sample)
            requests.append(request)
    log = out / SCRATCH / "answers.jsonl"

    def more(wanted: Sequence[Request]) -> dict[str, Completion]:
        return ask(rung.open, wanted, log, rung.name, context, rung.context_tokens)

    answers = waited(requests, more(requests), options.waits, more)
    return [
        Judged(
            rung=rung.name,
            item=problem.key,
            family=problem.family,
            sample=sample,
            completion=answers[key],
            verdict=judge.verdict(problem, answers[key]),
        )
        for key, (problem, sample) in asked.items()
    ]


def sampling_of(options: EvaluateOptions, seed: int, item: str, sample: int) -> Sampling:
    """Sample 0 is greedy; every other is drawn from a seed of its own."""
    if sample == 0:
        return Sampling(max_tokens=options.max_tokens)
    return Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        seed=int(content_key(seed, "08-evaluate", item, sample)[:15], 16),
    )

"""What a stage wants of one GPU's memory, or of this machine's: GiB, from shapes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.model_shapes import Model, Shape
from pipeline.recipe import Recipe, TeacherOptions

GIB = 2.0**30
# float32 weights, gradients and two AdamW moments (ZeRO, arXiv 1910.02054, section 3.1).
TRAINED_BYTES = 16
# Of those, what a state to resume from holds: weights and moments; with adapters, of a hundredth.
STATE_BYTES, ADAPTER_STATE_BYTES = 12, 0.2
# Frozen weights of 16 or 4 bits, and adapters of about a hundredth with their AdamW states.
LORA_BYTES, QLORA_BYTES = 2.2, 0.8
# Activations a token, layer and hidden unit. Korthikanti et al. 2022 (arXiv 2205.05198, equation
# 2) count 34 without attention's own, which fused kernels do not keep; weights of float32 under
# autocast keep copies beside them: 60 on an H200 (docs/notes.md). Recomputed layers keep their
# input.
KEPT_BYTES, INPUT_BYTES = 60, 2
# Of a GPU's memory: where more would be kept, layers are computed again unless the recipe says so.
# Practice shares the GPU with attempts and, mostly, a teacher.
KEPT_SHARE, PRACTICE_KEPT_SHARE = 0.4, 0.2
# Logits of TRL's own loss in bfloat16 and again in float32; this project's loss holds 256 rows.
LOGIT_BYTES, LOGIT_ROWS = 6, 256
# Of a GPU's nominal memory, what programs find.
USABLE_SHARE = 0.97
# Of one listed token of a graded place in practice's log (652 of 24).
GRADE_BYTES = 27
# CUDA's own context, kernels' scratch space.
RUNTIME_GIB = 1.5
# The copy of the student that writes the attempts (on a processor at most float32, with packed
# weights beside it), and what their keys and values may fill.
COPY_BYTES, PROCESSOR_COPY_BYTES, SAMPLING_SHARE = 2, 6, 0.1
# Attempts at a time at most, and what their prompts are counted as.
ATTEMPT_SLOTS, PROMPT_TOKENS, SAMPLING_CONTEXT_TOKENS = 128, 256, 1024


@dataclass(frozen=True)
class Memory:
    """`wanted_gib` of `limit_gib`; `sequences` of full context have room at a time beside it."""

    wanted_gib: float
    limit_gib: float
    sequences: int | None = None

    @property
    def fits(self) -> bool:
        return self.wanted_gib <= self.limit_gib

    def __str__(self) -> str:
        room = "" if self.sequences is None else f", room for {self.sequences} whole sequences"
        verdict = "fits" if self.fits else "DOES NOT FIT"
        return f"{self.wanted_gib:.1f} of {self.limit_gib:.1f} GiB{room}: {verdict}"


def machine_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def limit_gib(recipe: Recipe) -> float:
    """Of one GPU, or of this machine."""
    return recipe.hardware.gpu_memory_gib or machine_gib()


def usable_gib(recipe: Recipe) -> float:
    """What training may fill of it."""
    return limit_gib(recipe) * (USABLE_SHARE if recipe.hardware.gpus else 1.0)


def teacher_on_gpus(recipe: Recipe) -> bool:
    """llama.cpp is built for processors alone."""
    return recipe.hardware.gpus > 0 and recipe.teacher.engine in ("vllm", "transformers")


def answering(recipe: Recipe, model: Model) -> Memory:
    """The teacher answering: weights over its GPUs, one sequence of full context, and the rest."""
    teacher, on_gpus = recipe.teacher, teacher_on_gpus(recipe)
    whole_gib = limit_gib(recipe) if on_gpus else machine_gib()
    weights_gib = model.weights_bytes / GIB / teacher.tensor_parallel
    share_gib = whole_gib * (teacher.memory_share if teacher.engine == "vllm" else 1.0)
    besides_gib = RUNTIME_GIB if on_gpus else 0.0
    one_gib = sequence_gib(model, teacher)
    free_gib = share_gib - weights_gib - besides_gib
    room = int(max(0.0, free_gib) / one_gib) if one_gib else None
    at_once = max(1, min(teacher.slots, room or 1)) if on_gpus else teacher.slots
    return Memory(weights_gib + besides_gib + at_once * one_gib, share_gib, room)


def sequence_gib(model: Model, teacher: TeacherOptions) -> float:
    """Keys and values of one sequence of full context, on each of the teacher's GPUs."""
    if model.shape is None:
        return 0.0
    return model.shape.kv_bytes() * teacher.context_tokens / GIB / teacher.tensor_parallel


def training(recipe: Recipe, student: Model) -> Memory:
    """SFT: states, and activations of the longest examples that are read at a time."""
    plan = recipe.training
    at_a_time, _ = plan.steps_of(recipe.sft.batch_examples)
    tokens = at_a_time * recipe.sft.max_tokens
    rows = tokens if plan.library_path else LOGIT_ROWS
    shards = plan.processes if plan.strategy in ("fsdp2", "zero3") else 1
    each = {"full": TRAINED_BYTES, "lora": LORA_BYTES, "qlora": QLORA_BYTES}[recipe.sft.method]
    wanted_gib = each * student.parameters / GIB / shards
    wanted_gib += _activations_gib(recipe, student, tokens, rows) + _runtime_gib(recipe)
    return Memory(wanted_gib, usable_gib(recipe))


def practising(recipe: Recipe, student: Model, teacher: Model) -> Memory:
    """The student training beside its teacher, in one process unless `exact` is spread."""
    options, plan = recipe.on_policy, recipe.training
    states_gib = TRAINED_BYTES * student.parameters / GIB
    if options.method == "exact" and plan.strategy in ("fsdp2", "zero3"):
        states_gib /= plan.processes
    tokens = _practice_tokens(recipe)
    copy_bytes = COPY_BYTES if recipe.hardware.gpus else PROCESSOR_COPY_BYTES
    wanted_gib = states_gib + copy_bytes * student.parameters / GIB + _runtime_gib(recipe)
    vllm = plan.sampler == "vllm" and options.method != "exact"
    vllm_share = 0.0 if plan.sampler_gpus else plan.sampler_memory_share
    share = vllm_share if vllm else SAMPLING_SHARE
    sampling_gib = share * limit_gib(recipe) if recipe.hardware.gpus else 0.0
    kept_gib = _activations_gib(recipe, student, tokens, LOGIT_ROWS, PRACTICE_KEPT_SHARE)
    # vLLM keeps what it has; the copy's keys and values go before the updates.
    wanted_gib += sampling_gib + kept_gib if vllm else max(sampling_gib, kept_gib)
    if recipe.teacher.engine == "vllm":
        wanted_gib += limit_gib(recipe) * recipe.teacher.practice_memory_share
    elif teacher_on_gpus(recipe) or (not recipe.hardware.gpus and recipe.teacher.engine != "http"):
        wanted_gib += teacher.weights_bytes / GIB
    return Memory(wanted_gib, usable_gib(recipe))


def _practice_tokens(recipe: Recipe) -> int:
    """Those that an update of practice reads at a time, at most."""
    options = recipe.on_policy
    longest = PROMPT_TOKENS + options.max_tokens
    longest = max(longest, recipe.sft.max_tokens if options.replay else 0)
    if options.method != "exact":
        return options.batch_lessons * longest
    at_a_time, _ = recipe.training.steps_of(options.batch_lessons)
    return at_a_time * longest


def practice_computes_again(recipe: Recipe, student: Model) -> bool:
    """Whether practice keeps the student's layers, or computes them again."""
    return _again(recipe, student, _practice_tokens(recipe), PRACTICE_KEPT_SHARE)


def sampling_context(max_tokens: int) -> int:
    """Tokens of an attempt's prompt and text, at most."""
    return max(SAMPLING_CONTEXT_TOKENS, 2 * max_tokens)


def grading_context(teacher: TeacherOptions, max_tokens: int, longest_bytes: int = 0) -> int:
    """Tokens of what vLLM's teacher grades and goes on from: the student's prompts and texts, half
    as many again for another tokenizer, the longest question and what the teacher is told besides
    (a byte each)."""
    told = [teacher.system, *(f"{e.question}{e.reasoning}{e.answer}" for e in teacher.examples)]
    besides = sum(len(text.encode()) for text in told)
    wanted = sampling_context(max_tokens) * 3 // 2 + besides + longest_bytes
    return min(teacher.context_tokens, wanted)


def small_shares(recipe: Recipe, student: Model, teacher: Model) -> Iterator[str]:
    """Warnings of shares that vLLM would refuse to start in: of its model's weights, one sequence
    of full length, and what it needs besides."""
    options, training = recipe.on_policy, recipe.training
    if options.method == "none" or not recipe.hardware.gpus:
        return
    shares = []
    if recipe.teacher.engine == "vllm":
        context = grading_context(recipe.teacher, options.max_tokens)
        opened = recipe.teacher.model_copy(update={"context_tokens": context})
        each_gib = teacher.weights_bytes / GIB / opened.tensor_parallel
        each_gib += sequence_gib(teacher, opened)
        shares.append(("teacher.practice_memory_share", opened.practice_memory_share, each_gib))
    if training.sampler == "vllm" and options.method != "exact":
        shape, each_bytes = student.shape, student.weights_bytes
        if shape:
            each_bytes += shape.kv_bytes() * sampling_context(options.max_tokens)
            # What is handed over has a head of its own (`pipeline/vllm_sampler.py`).
            each_bytes += 2 * shape.vocabulary * shape.hidden * shape.tied
        share = training.sampler_memory_share
        shares.append(("training.sampler_memory_share", share, each_bytes / GIB))
    for name, share, each_gib in shares:
        given_gib, wanted_gib = share * limit_gib(recipe), each_gib + RUNTIME_GIB
        if given_gib < wanted_gib:
            yield (
                f"warning: {name} {share:g} is {given_gib:.1f} GiB, weights, one sequence and vLLM "
                f"itself want {wanted_gib:.1f} GiB"
            )


def rows_at_a_time(recipe: Recipe, student: Model, share: float, tokens: int, most: int) -> int:
    """Sequences of so many tokens that a share of a GPU has room for, as the engine counts them."""
    if student.shape is None or not recipe.hardware.gpus:
        return most
    room = share * limit_gib(recipe) * GIB / (student.shape.kv_bytes() * tokens)
    return max(1, min(most, int(room)))


def _activations_gib(
    recipe: Recipe, student: Model, tokens: int, logit_rows: int, share: float = KEPT_SHARE
) -> float:
    if student.shape is None:
        return 0.0
    shape, again = student.shape, _again(recipe, student, tokens, share)
    kept = INPUT_BYTES * shape.layers + KEPT_BYTES if again else KEPT_BYTES * shape.layers
    logits = LOGIT_BYTES * min(tokens, logit_rows) * shape.vocabulary
    return (kept * tokens * shape.hidden + logits) / GIB


def training_computes_again(recipe: Recipe, student: Model) -> bool:
    """Whether SFT keeps its layers, or computes them again."""
    at_a_time, _ = recipe.training.steps_of(recipe.sft.batch_examples)
    return _again(recipe, student, at_a_time * recipe.sft.max_tokens)


def _again(recipe: Recipe, student: Model, tokens: int, share: float = KEPT_SHARE) -> bool:
    said = recipe.training.gradient_checkpointing
    gpu_bytes = limit_gib(recipe) * GIB if recipe.hardware.gpus else None
    return computes_again(student.shape, tokens, gpu_bytes, share) if said is None else said


def computes_again(
    shape: Shape | None, tokens: int, gpu_bytes: float | None, share: float = KEPT_SHARE
) -> bool:
    """True when `tokens` read at a time would keep more than a share of a GPU."""
    if gpu_bytes is None or shape is None:
        return gpu_bytes is not None
    return KEPT_BYTES * shape.layers * shape.hidden * tokens > share * gpu_bytes


def _runtime_gib(recipe: Recipe) -> float:
    return RUNTIME_GIB if recipe.hardware.gpus else 0.0


def disk_gb(
    recipe: Recipe,
    weights: int,
    answers: int = 0,
    answer_tokens: float = 0.0,
    graded_tokens: float = 0.0,
) -> float:
    """At most, while it runs: states to resume from, checkpoints, files, the traces' text, and
    grades."""
    files = len(recipe.gguf.types) + len(recipe.gguf.bits) + len(recipe.onnx.precisions)
    # Two are kept, and a third is written before the first of them goes.
    each = STATE_BYTES if recipe.sft.method == "full" else ADAPTER_STATE_BYTES
    learning, practising = 3 * each * weights, 0.0
    if recipe.on_policy.method == "exact":
        practising = 3 * STATE_BYTES * weights
    elif recipe.on_policy.method != "none":  # the next is whole before the last one goes
        practising = 2 * STATE_BYTES * weights
    states = max(learning, practising)  # those of SFT go when it is done
    # Four bytes a token, and ids beside them; answered, judged, kept, made into examples.
    text = 4 * 10 * answers * answer_tokens
    grades = GRADE_BYTES * recipe.on_policy.top_tokens * graded_tokens
    return (states + (2 + files) * 2 * weights + text + grades) / 1e9

"""What a run will take, told before it begins: tokens, hours, memory, disk. Asks no network.

Counted from shapes: 2 operations a weight and token for reading or writing, 6 for training
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1), 8 where layers are computed again; over what
the hardware can do, times the share of it that such work was seen to reach. Orders of magnitude:
answers are as long as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import forecast_memory
from pipeline.forecast_memory import Memory
from pipeline.model_shapes import Model, model_at
from pipeline.practice_counts import block_counts
from pipeline.recipe import Recipe
from pipeline.teacher_encoding import encoded
from serve.engines.blocks import CACHE_SHARE
from serve.hardware import cores, cpu_flags

FORWARD, TRAINING, TRAINING_AGAIN = 2, 6, 8
# Shares of peak: serving reports of vLLM, training reports of PaLM-like runs (0.35 to 0.5).
DECODING, READING, LEARNING = 0.15, 0.5, 0.35
# Of one core, 10^12 operations a second, bfloat16 where it has it (docs/notes.md).
CORE_TFLOPS = {"amx_bf16": 0.5, "avx512_bf16": 0.2}
PLAIN_CORE_TFLOPS, SERVER_FLAG = 0.08, "avx512_bf16"
CORE_SHARE = 0.4
# Of an answer's limit that it takes, of traces that are kept.
ANSWERED, KEPT = 0.35, 0.7
QUESTION_TOKENS, SHORT_ANSWER_TOKENS = 60, 10
HOUR_S = 3600.0
# A layer of a model that transformers runs token by token: 30 to 40 ms of 30 layers on an H200,
# whatever the rows (docs/performance.md). Of one in vLLM's graphs, and what vLLM takes to read
# other weights: guesses, not measured here.
LAYER_S, GRAPH_LAYER_S, RELOAD_S = 1.1e-3, 1.5e-4, 10.0


@dataclass(frozen=True)
class Line:
    """One stage: what it does, how long on how many devices, and what of a device's memory."""

    stage: str
    what: str
    seconds: float | None
    devices: int
    on_cpu: bool = False
    memory: Memory | None = None


@dataclass(frozen=True)
class Work:
    """Numbers that several stages share."""

    recipe: Recipe
    teacher: Model
    student: Model
    answers: int
    answer_tokens: float

    @property
    def on_gpus(self) -> bool:
        return self.recipe.hardware.gpus > 0


def forecast(recipe: Recipe) -> list[str]:
    """Lines for people; those of stages that cannot fit or be known begin with "warning"."""
    work = work_of(recipe)
    lines = list(lines_of(work))
    weights = work.student.parameters
    # By `exact` grades are distributions, and on no disk.
    logged = 0.0 if recipe.on_policy.method == "exact" else _graded_tokens(recipe)
    disk_gb = forecast_memory.disk_gb(recipe, weights, work.answers, work.answer_tokens, logged)
    return [
        _head(recipe),
        *(_shown(work, line) for line in lines),
        _whole(recipe, lines),
        f"disk           {disk_gb:.1f} GB at most while it runs",
        *_warnings(work, lines),
    ]


def work_of(recipe: Recipe) -> Work:
    problems = _sources(recipe) * recipe.problems.train_per_family
    return Work(
        recipe,
        encoded(recipe.teacher),
        model_at(recipe.student.model),
        problems * recipe.traces.samples,
        ANSWERED * recipe.traces.max_tokens,
    )


def lines_of(work: Work) -> Iterator[Line]:
    yield _traces(work)
    yield _sft(work)
    if work.recipe.on_policy.method != "none":
        yield _practice(work)
    yield from _examination(work)


def _traces(work: Work) -> Line:
    recipe = work.recipe
    what = f"{work.answers:,} answers of about {work.answer_tokens:,.0f} tokens"
    if not work.answers:
        return Line("02-traces", "nothing is asked", None, 0)
    if recipe.teacher.engine == "http":
        return Line("02-traces", f"{what}, on the server", None, 0)
    devices = _teacher_devices(recipe)
    memory = forecast_memory.answering(recipe, work.teacher)
    seconds = _answered_s(work, work.teacher, work.answers, work.answer_tokens, devices, memory)
    return Line("02-traces", what, seconds, devices, memory=memory)


def _sft(work: Work) -> Line:
    recipe, plan = work.recipe, work.recipe.training
    memory = forecast_memory.training(recipe, work.student)
    if not recipe.traces.samples:
        return Line("04-sft", "imported traces, not counted", None, 0, memory=memory)
    per_problem = min(recipe.traces.samples, recipe.curate.per_problem) / recipe.traces.samples
    traces = KEPT * per_problem * work.answers
    if recipe.curate.select == "s1":
        traces = min(traces, recipe.curate.select_traces)
    traces = min(traces, recipe.supervise.traces or traces)
    long, short = _examples_a_trace(recipe)
    longest = min(work.answer_tokens + QUESTION_TOKENS, recipe.sft.max_tokens)
    tokens = traces * (long * longest + short * (QUESTION_TOKENS + SHORT_ANSWER_TOKENS))
    tokens *= recipe.sft.epochs
    again = forecast_memory.training_computes_again(recipe, work.student)
    each = TRAINING_AGAIN if again else TRAINING
    seconds = each * work.student.multiplied * tokens / _rate(recipe, plan.processes, LEARNING)
    what = f"{traces * (long + short):,.0f} examples, {tokens / 1e6:,.1f} M tokens"
    return Line("04-sft", what, seconds, plan.processes, memory=memory)


def _examples_a_trace(recipe: Recipe) -> tuple[float, float]:
    """Of all reasoning and of the answer alone, by the recipe's view (`pipeline/views.py`)."""
    by_view = {
        "answer": (0.0, 1.0),
        "full+answer": (1.0, 1.0),
        "multitask": (recipe.supervise.explain_share, 1.0),
    }
    return by_view.get(recipe.supervise.view, (1.0, 0.0))


def _practice(work: Work) -> Line:
    recipe, options = work.recipe, work.recipe.on_policy
    spread = options.method == "exact" and recipe.training.spread
    devices = recipe.training.processes if spread else 1
    attempts = options.blocks * options.block_attempts
    tokens, graded = attempts * ANSWERED * options.max_tokens, _graded_tokens(recipe)
    block = block_counts(options, options.method)
    passes = 1 if options.method == "exact" else options.passes
    learnt = options.blocks * block.lessons * ANSWERED * options.max_tokens * passes
    student, teacher = work.student.multiplied, work.teacher.multiplied
    seconds = _attempted_s(work, devices)
    seconds += TRAINING * student * learnt / _rate(recipe, devices, LEARNING)
    if recipe.teacher.engine != "http":
        answering = devices if spread else _devices_of_one_teacher(recipe)
        seconds += FORWARD * teacher * graded / _rate(recipe, answering, READING)
        # It goes on from about the middle.
        written = options.blocks * block.continuations * ANSWERED * options.max_tokens / 2
        seconds += FORWARD * teacher * written / _rate(recipe, answering, DECODING)
        devices = max(devices, answering)
    devices = max(devices, *(1 + number for number in recipe.training.sampler_gpus), 1)
    memory = forecast_memory.practising(recipe, work.student, work.teacher)
    what = f"{attempts:,} attempts, {tokens / 1e6:,.1f} M tokens"
    return Line("05-on-policy", what, seconds, devices, memory=memory)


def _graded_tokens(recipe: Recipe) -> float:
    options = recipe.on_policy
    if options.method == "none":
        return 0.0
    grades = block_counts(options, options.method).grades
    return options.blocks * grades * ANSWERED * options.max_tokens


def _attempted_s(work: Work, devices: int) -> float:
    recipe, options = work.recipe, work.recipe.on_policy
    share, most = forecast_memory.SAMPLING_SHARE, forecast_memory.ATTEMPT_SLOTS
    if recipe.training.sampler == "vllm" and options.method != "exact" and work.on_gpus:
        # As long as answers are: others take the places of those that ended.
        length = ANSWERED * options.max_tokens
        share = recipe.training.sampler_memory_share
        share -= (
            work.student.weights_bytes / forecast_memory.GIB / forecast_memory.limit_gib(recipe)
        )
        usual = int(QUESTION_TOKENS + length)
        rows = forecast_memory.rows_at_a_time(recipe, work.student, max(0.0, share), usual, most)
        rows *= max(1, len(recipe.training.sampler_gpus))
        steps = options.blocks * max(options.max_tokens, options.block_attempts * length / rows)
        return steps * _step_s(work, GRAPH_LAYER_S) + options.blocks * RELOAD_S
    longest = forecast_memory.PROMPT_TOKENS + options.max_tokens
    rows = forecast_memory.rows_at_a_time(recipe, work.student, share, longest, most)
    each = math.ceil(options.block_attempts / devices)
    return options.blocks * _in_blocks_s(work, each, rows, options.max_tokens)


def _in_blocks_s(work: Work, answers: int, rows: int, limit: int) -> float:
    """Seconds of answers that transformers writes, so many at a time: a block is as long as its
    longest, which of many is at the limit; a token of all of them takes its layers' launches."""
    recipe, student = work.recipe, work.student
    if not work.on_gpus:
        written = FORWARD * student.multiplied * answers * ANSWERED * limit
        return written / _rate(recipe, 1, DECODING)
    return math.ceil(answers / rows) * limit * _step_s(work, LAYER_S)


def _step_s(work: Work, layer_s: float) -> float:
    """Of one token for all rows of the student on a GPU."""
    student, bandwidth = work.student, work.recipe.hardware.gpu_gb_per_s or math.inf
    layers = student.shape.layers if student.shape else 0
    return max(layer_s * layers, student.weights_bytes / 1e9 / bandwidth)


def _examination(work: Work) -> Iterator[Line]:
    """Every rung answers the evaluation; files run on this machine's processors, unless CUDA's."""
    recipe, options = work.recipe, work.recipe.evaluate
    items = _sources(recipe) * recipe.problems.eval_per_family
    answers = items + min(items, options.k_items) * options.k
    length = ANSWERED * options.max_tokens
    rungs = 2 + (recipe.on_policy.method != "none")
    devices = _student_devices(recipe)
    longest = QUESTION_TOKENS + options.max_tokens
    share, most = CACHE_SHARE, 2 * options.slots
    rows = forecast_memory.rows_at_a_time(recipe, work.student, share, longest, most)
    seconds = rungs * _in_blocks_s(work, math.ceil(answers / devices), rows, options.max_tokens)
    if not work.on_gpus:
        asked = FORWARD * work.student.multiplied * answers * QUESTION_TOKENS
        seconds += rungs * asked / _rate(recipe, devices, READING)
    if recipe.teacher.engine != "http":
        memory = forecast_memory.answering(recipe, work.teacher)
        seconds += _answered_s(
            work, work.teacher, answers, length, _teacher_devices(recipe), memory
        )
    what = f"{rungs + 1} models, {answers:,} answers each of about {length:,.0f} tokens"
    yield Line("08-evaluate", what, seconds, devices)
    files = len(recipe.gguf.types) + len(recipe.gguf.bits) + len(recipe.onnx.precisions)
    more = _sources(recipe) * recipe.problems.gate_per_family
    operations = FORWARD * work.student.multiplied * length * files
    what = f"{files} files, {answers:,} answers each"
    yield Line("   its files", what, operations * answers / _core_rate(recipe), 0, on_cpu=True)
    what = f"the files again, at most {more:,} more items each"
    yield Line("09-gate", what, operations * (more + items) / _core_rate(recipe), 0, on_cpu=True)


def _answered_s(
    work: Work, model: Model, answers: int, length: float, devices: int, memory: Memory
) -> float:
    """Seconds of so many answers of the teacher: operations, or the weights read once a step, if
    that is more."""
    recipe = work.recipe
    written = FORWARD * model.multiplied * answers * length / _rate(recipe, devices, DECODING)
    read = FORWARD * model.multiplied * answers * QUESTION_TOKENS / _rate(recipe, devices, READING)
    bandwidth = recipe.hardware.gpu_gb_per_s
    if not work.on_gpus or not bandwidth:
        return written + read
    together = recipe.teacher.slots
    if memory.sequences:
        # A sequence is half-way on average, and as long as answers are.
        usual = recipe.teacher.context_tokens / (QUESTION_TOKENS + length / 2)
        together = min(together, max(1, int(memory.sequences * usual)))
    steps = answers * length / together
    return max(written, steps * model.weights_bytes / 1e9 / (bandwidth * devices)) + read


def _rate(recipe: Recipe, devices: int, share: float) -> float:
    """Operations a second of so many GPUs, or of this machine."""
    if not recipe.hardware.gpus:
        return _core_rate(recipe)
    return min(devices, recipe.hardware.gpus) * (recipe.hardware.gpu_tflops or 0.0) * 1e12 * share


def _core_rate(recipe: Recipe) -> float:
    """Of the cores that work, taken to multiply bfloat16 where the recipe tells of them."""
    flags = frozenset({SERVER_FLAG}) if recipe.hardware.cores else cpu_flags()
    each = next((t for flag, t in CORE_TFLOPS.items() if flag in flags), PLAIN_CORE_TFLOPS)
    return _cores(recipe) * each * 1e12 * CORE_SHARE


def _cores(recipe: Recipe) -> float:
    """The recipe's or this machine's; of a cluster's those that actors may use."""
    told, scale = recipe.hardware.cores or cores(), recipe.scale
    return min(told, scale.actors * scale.cpus_per_actor) if scale.executor == "ray" else told


def _teacher_devices(recipe: Recipe) -> int:
    actors = recipe.scale.actors if recipe.scale.executor == "ray" else 1
    return actors * _devices_of_one_teacher(recipe)


def _devices_of_one_teacher(recipe: Recipe) -> int:
    return recipe.teacher.tensor_parallel * recipe.teacher.data_parallel


def _student_devices(recipe: Recipe) -> int:
    return recipe.scale.actors if recipe.scale.executor == "ray" else 1


def _sources(recipe: Recipe) -> int:
    asked = recipe.problems
    return len(asked.families) + len(asked.files) + len(asked.datasets)


def _head(recipe: Recipe) -> str:
    hardware = recipe.hardware
    if hardware.gpus:
        place = f"{hardware.gpus} GPUs of {hardware.gpu_memory_gib:.0f} GiB and "
        place += f"{hardware.gpu_tflops:.0f} TFLOP/s" if hardware.gpus > 1 else ""
        if hardware.gpus == 1:
            place = (
                f"1 GPU of {hardware.gpu_memory_gib:.0f} GiB and {hardware.gpu_tflops:.0f} TFLOP/s"
            )
        shares = f"{DECODING:.0%} of that decoding, {READING:.0%} reading, {LEARNING:.0%} training"
    else:
        place, shares = f"{cores()} cores of this machine", f"{CORE_SHARE:.0%} of their peak"
    return (
        f"forecast for {place}, assuming {shares}; answers of {ANSWERED:.0%} of their limit, "
        f"{KEPT:.0%} of traces kept"
    )


def _shown(work: Work, line: Line) -> str:
    if line.seconds is None:
        took = ""
    elif not line.seconds:
        took = "time unknown"
    else:
        hours = line.seconds / HOUR_S
        took = f"{hours:,.1f} h" if hours >= 1 else f"{line.seconds / 60:.0f} min"
        if line.on_cpu and work.on_gpus:
            took += f" on {_cores(work.recipe):g} cores"
        elif work.on_gpus:
            took += f" on {line.devices} GPU{'s' * (line.devices > 1)}"
    memory = f"  {line.memory}" if line.memory else ""
    return f"{line.stage:14} {line.what:50} {took:>18}{memory}".rstrip()


def _whole(recipe: Recipe, lines: list[Line]) -> str:
    hours = sum(line.seconds or 0.0 for line in lines) / HOUR_S
    on_gpus = sum((line.seconds or 0.0) * line.devices for line in lines) / HOUR_S
    text = f"in all         {hours:,.1f} h"
    if recipe.hardware.gpus:
        rented = hours * recipe.hardware.gpus
        text += f", {rented:,.0f} GPU-hours, {on_gpus:,.0f} of them at work"
        if recipe.hardware.price_per_gpu_hour is not None:
            text += f"; {rented * recipe.hardware.price_per_gpu_hour:,.0f} at the price given"
    return text


def _warnings(work: Work, lines: list[Line]) -> Iterator[str]:
    for model, who in ((work.teacher, "teacher"), (work.student, "student")):
        if not model.parameters and not (who == "teacher" and work.recipe.teacher.engine == "http"):
            yield f"warning: the size of {who} {model.name} is unknown here; its part is left out"
    for line in lines:
        if line.memory and not line.memory.fits:
            memory = line.memory
            yield (
                f"warning: {line.stage} wants {memory.wanted_gib:.1f} GiB "
                f"where {memory.limit_gib:.1f} GiB are"
            )
    yield from forecast_memory.small_shares(work.recipe, work.student, work.teacher)
    wanted = max((line.devices for line in lines), default=0)
    if work.on_gpus and wanted > work.recipe.hardware.gpus:
        gpus = work.recipe.hardware.gpus
        yield f"warning: the recipe uses {wanted} GPUs, hardware.gpus is {gpus}"
    if work.recipe.problems.datasets:
        yield (
            "data sets are not opened here: each is counted as problems.train_per_family = "
            f"{work.recipe.problems.train_per_family:,} problems, the most that are used"
        )

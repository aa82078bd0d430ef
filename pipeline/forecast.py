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
from pipeline.forecast_rates import (
    ANSWERED,
    CORE_SHARE,
    DECODING,
    FORWARD,
    GRAPH_LAYER_S,
    LEARNING,
    READING,
    RELOAD_S,
    TRAINING,
    TRAINING_AGAIN,
    core_rate,
    cores_of,
    cores_of_actors,
    in_blocks_s,
    rate,
    step_s,
)
from pipeline.model_shapes import Model, model_at
from pipeline.practice_counts import block_counts
from pipeline.recipe import Recipe
from pipeline.teacher_encoding import encoded
from serve.engines.blocks import CACHE_SHARE
from serve.hardware import cores

# Of traces that are kept.
KEPT = 0.7
QUESTION_TOKENS, SHORT_ANSWER_TOKENS = 60, 10
HOUR_S = 3600.0


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
        f"disk           {disk_gb:.1f} GB at most while it runs{_fetched(work)}",
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
    memory = forecast_memory.answering(recipe, work.teacher)
    seconds = _taught_s(work, work.answers, recipe.traces.max_tokens, memory)
    on_cpu = not forecast_memory.teacher_on_gpus(recipe)
    devices = 0 if on_cpu else _teacher_devices(recipe)
    return Line("02-traces", what, seconds, devices, on_cpu, memory)


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
    seconds = each * work.student.multiplied * tokens / rate(recipe, plan.processes, LEARNING)
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
    again = forecast_memory.practice_computes_again(recipe, work.student)
    each = TRAINING_AGAIN if again else TRAINING
    seconds += each * student * learnt / rate(recipe, devices, LEARNING)
    if recipe.teacher.engine != "http":
        answering = devices if spread else _devices_of_one_teacher(recipe)
        on_cores = None if forecast_memory.teacher_on_gpus(recipe) else cores_of(recipe)
        seconds += FORWARD * teacher * graded / rate(recipe, answering, READING, on_cores)
        # It goes on from about the middle.
        written = options.blocks * block.continuations * ANSWERED * options.max_tokens / 2
        seconds += FORWARD * teacher * written / rate(recipe, answering, DECODING, on_cores)
        devices = max(devices, answering if on_cores is None else 0)
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
        step = step_s(recipe, work.student, GRAPH_LAYER_S)
        return steps * step + options.blocks * RELOAD_S
    longest = forecast_memory.PROMPT_TOKENS + options.max_tokens
    rows = forecast_memory.rows_at_a_time(recipe, work.student, share, longest, most)
    turns, at_once = options.blocks, options.block_attempts
    if options.method == "exact":  # which writes what an update learns from, update by update
        turns, at_once = turns * block_counts(options, "exact").updates, options.batch_lessons
    limit, count = options.max_tokens, cores_of(recipe)
    return turns * in_blocks_s(recipe, work.student, at_once, devices, rows, limit, count)


def _examination(work: Work) -> Iterator[Line]:
    """Every rung answers the evaluation; files run on this machine's processors, unless CUDA's."""
    recipe, options = work.recipe, work.recipe.evaluate
    items = _sources(recipe) * recipe.problems.eval_per_family
    answers = items + min(items, options.k_items) * options.k
    length = ANSWERED * options.max_tokens
    practises = recipe.on_policy.method != "none"
    rungs = 2 + practises
    devices = _student_devices(recipe)
    longest = QUESTION_TOKENS + options.max_tokens
    share, most = CACHE_SHARE, 2 * options.slots
    rows = forecast_memory.rows_at_a_time(recipe, work.student, share, longest, most)
    limit, count = options.max_tokens, cores_of_actors(recipe)

    def asked_s(answers: int) -> float:
        """Of one student."""
        seconds = in_blocks_s(recipe, work.student, answers, devices, rows, limit, count)
        if not work.on_gpus:
            read = FORWARD * work.student.multiplied * answers * QUESTION_TOKENS
            seconds += read / core_rate(recipe, count)
        return seconds

    seconds = rungs * asked_s(answers)
    if recipe.teacher.engine != "http":
        memory = forecast_memory.answering(recipe, work.teacher)
        seconds += _taught_s(work, answers, options.max_tokens, memory)
    what = f"{rungs + 1} models, {answers:,} answers each of about {length:,.0f} tokens"
    yield Line("08-evaluate", what, seconds, devices)
    files = len(recipe.gguf.types) + len(recipe.gguf.bits) + len(recipe.onnx.precisions)
    more = _sources(recipe) * recipe.problems.gate_per_family
    operations = FORWARD * work.student.multiplied * length * files
    what = f"{files} files, {answers:,} answers each"
    yield Line(
        "   its files", what, operations * answers / core_rate(recipe, count), 0, on_cpu=True
    )
    what = f"the files again, at most {more:,} more items each"
    yield Line(
        "09-gate", what, operations * (more + items) / core_rate(recipe, count), 0, on_cpu=True
    )
    if more:
        students = "2 students" if practises else "the student"
        what = f"{students}, at most {more:,} more items"
        yield Line("   beside", what, (1 + practises) * asked_s(more), devices)


def _taught_s(work: Work, answers: int, limit: int, memory: Memory) -> float:
    """Seconds of so many answers of the teacher: operations, or the weights read once a step, if
    that is more."""
    recipe, model, devices = work.recipe, work.teacher, _teacher_devices(work.recipe)
    length = ANSWERED * limit
    on_gpus = forecast_memory.teacher_on_gpus(recipe)
    on_cores = None if on_gpus else cores_of_actors(recipe)
    read = FORWARD * model.multiplied * answers * QUESTION_TOKENS
    read_s = read / rate(recipe, devices, READING, on_cores)
    written = FORWARD * model.multiplied * answers * length
    written_s = written / rate(recipe, devices, DECODING, on_cores)
    if not on_gpus:
        return written_s + read_s
    together = recipe.teacher.slots
    if recipe.teacher.engine == "transformers":
        rows = min(together, max(1, memory.sequences or 1))
        return in_blocks_s(recipe, model, answers, devices, rows, limit, 0) + read_s
    if memory.sequences:
        # A sequence is half-way on average, and as long as answers are.
        usual = recipe.teacher.context_tokens / (QUESTION_TOKENS + length / 2)
        together = min(together, max(1, int(memory.sequences * usual)))
    steps = answers * length / together
    bandwidth = 1e9 * (recipe.hardware.gpu_gb_per_s or math.inf) * devices
    return max(written_s, steps * model.weights_bytes / bandwidth) + read_s


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


def _fetched(work: Work) -> str:
    """What a hub has to send, or has sent."""
    named = ((work.recipe.teacher.model, work.teacher), (work.recipe.student.model, work.student))
    models = [m for name, m in named if name.startswith("hub:")]
    gigabytes = sum(model.weights_bytes for model in models) / 1e9
    return f", {gigabytes:.1f} GB of models in the cache besides" if gigabytes else ""


def _shown(work: Work, line: Line) -> str:
    if line.seconds is None:
        took = ""
    elif not line.seconds:
        took = "time unknown"
    else:
        hours = line.seconds / HOUR_S
        took = f"{hours:,.1f} h" if hours >= 1 else f"{line.seconds / 60:.0f} min"
        if line.on_cpu and work.on_gpus:
            took += f" on {cores_of_actors(work.recipe):g} cores"
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

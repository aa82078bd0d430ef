"""How much memory, disk and time a run will want, from shapes and a few measured answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pipeline.forecast_memory import TRAINED_BYTES, disk_gb, machine_gib, practising, training
from pipeline.forecast_rates import ANSWERED
from pipeline.model_shapes import model_at
from pipeline.on_policy_options import Method
from pipeline.practice_counts import block_counts
from pipeline.prompts import student_messages, teacher_messages
from pipeline.recipe import Recipe
from pipeline.teacher import open_teacher
from pipeline.teacher_encoding import encoded
from pipeline.weights import parameters_of, teacher_weights
from serve.errors import CannotDo
from serve.messages import Request, Sampling
from serve.models import artifact_bytes, resolve_model

GB = 1e9
SHORT = Sampling(max_tokens=64)
NO_EXAMPLE = "\n".join(["1 + 1 = 2"] * 32)


def forecast(recipe: Recipe, checkpoint: Path, method: Method) -> Iterator[str]:
    """Lines for people. Times come from answers measured now, on this machine as it is.

    `method` is the one of practice that will run.
    """
    weights = parameters_of(checkpoint)
    recipe = recipe.model_copy(update={"on_policy": recipe.on_policy.resolved(method)})
    teacher_gb = _teacher_bytes(recipe) / GB
    practises = recipe.on_policy.method != "none"
    training_gb = TRAINED_BYTES * weights / GB + 2 * weights / GB * practises
    yield (
        f"memory   training {training_gb:.1f} GB for {weights / 1e6:.0f} M weights and activations "
        f"besides; teacher {teacher_gb:.1f} GB; this machine has {machine_gib():.0f} GiB"
    )
    if recipe.hardware.gpus:
        student = model_at(recipe.student.model)
        told = f"memory   of a GPU: SFT {training(recipe, student)}"
        if practises:
            told += f"; practice {practising(recipe, student, encoded(recipe.teacher))}"
        yield told
    yield (
        f"disk     at most {disk_gb(recipe, weights):.1f} GB while it runs; "
        f"{shutil.disk_usage(Path.cwd()).free / GB:.0f} GB are free"
    )
    asked = recipe.problems
    sources = len(asked.families) + len(asked.files) + len(asked.datasets)
    problems = asked.train_per_family * len(asked.families)
    answers = problems * recipe.traces.samples
    besides = " besides those of files and data sets" if sources > len(asked.families) else ""
    yield f"traces   {answers} answers of the teacher{besides}, one checked example each at most"
    if not practises:
        return
    graded_s, sampled_s = measured(recipe, checkpoint)
    options = recipe.on_policy
    block = block_counts(options, method)
    # A continuation took as long as a grade where both were measured (docs/notes.md).
    asked_s = (block.grades + block.continuations) * graded_s
    # A forward and a backward pass of the student cost three readings of the same tokens.
    teacher = teacher_weights(recipe, of=parameters_of)
    update_s = 3 * graded_s * options.batch_lessons * weights / teacher if teacher else 0.0
    pace = f"about {update_s:.1f} s" if teacher else "an unknown pace, left out"
    looked_at = options.looks * options.watch_problems * options.watch_samples
    block_s = block.attempts * sampled_s + asked_s + block.updates * update_s
    whole_s = options.blocks * block_s + looked_at * sampled_s
    yield (
        f"practice {options.blocks} blocks of about {block_s:.0f} s "
        f"({block.attempts} attempts at {sampled_s:.2f} s, about {block.grades:.0f} grades and "
        f"{block.continuations:.0f} continuations at {graded_s:.2f} s, {block.updates} updates at "
        f"{pace}): {whole_s / 60:.0f} minutes"
    )


def measured(recipe: Recipe, checkpoint: Path) -> tuple[float, float]:
    """Seconds a graded answer and a sampled attempt take here, from the worked examples; as long as
    forecasts take answers to be."""
    from serve.engines import load_engine

    examples = recipe.teacher.examples[:8]
    texts = [f"{e.reasoning.strip()}\nAnswer: {e.answer}" for e in examples] or [NO_EXAMPLE]
    questions = [e.question for e in examples] or ["1 + 1 ="]
    families = [e.family for e in examples] or [None]
    requests = [
        Request(key=str(i), messages=teacher_messages(recipe.teacher, q, family), begun=text)
        for i, (q, family, text) in enumerate(zip(questions, families, texts, strict=True))
    ]
    with closing(open_teacher(recipe.teacher.model_copy(update={"slots": 4}))) as teacher:
        started_s = time.monotonic()
        try:
            grades = teacher.grade(requests, recipe.on_policy.top_tokens)
            tokens = sum(len(grade.scores.ids) for grade in grades)
        except CannotDo:  # recover then: it goes on instead
            whole = [r.model_copy(update={"begun": "", "sampling": SHORT}) for r in requests]
            tokens = sum(said.completion_tokens for _, said in teacher.generate(whole))
        graded_s = (time.monotonic() - started_s) / max(1, tokens)
    asked = [
        Request(
            key=str(i),
            messages=student_messages(recipe.asked_student, questions[i % len(questions)]),
            sampling=Sampling(temperature=1.0, seed=i, max_tokens=48),
        )
        for i in range(32)
    ]
    with closing(load_engine("transformers", path=checkpoint, slots=32)) as student:
        started_s = time.monotonic()
        tokens = sum(said.completion_tokens for _, said in student.generate(asked))
        sampled_s = (time.monotonic() - started_s) / max(1, tokens)
    length = ANSWERED * recipe.on_policy.max_tokens
    return length * graded_s, length * sampled_s


def _teacher_bytes(recipe: Recipe) -> int:
    if recipe.teacher.engine == "http":
        return 0
    path = resolve_model(recipe.teacher.model, recipe.teacher.sha256)
    return artifact_bytes(path)

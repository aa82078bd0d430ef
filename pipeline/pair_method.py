"""Which method of on-policy refinement fits a pair, and why."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pipeline.on_policy_options import Method, OnPolicyOptions
from pipeline.prompts import teacher_messages
from pipeline.recipe import TeacherOptions
from pipeline.teacher import open_teacher
from serve.engines.http import NotUnderstood
from serve.errors import CannotDo, DataError
from serve.messages import Message, Request, Sampling
from serve.models import resolve_model


class Choice(NamedTuple):
    method: Method
    why: str


def choose_method(teacher: TeacherOptions, options: OnPolicyOptions, checkpoint: Path) -> Choice:
    """The recipe's own method if it can work, else what fits. Raises DataError with the reason.

    Only a server has to be asked whether it grades, and goes on: answers of a few tokens.
    """
    choice = _chosen(teacher, options, checkpoint)
    wanted = choice.method == "recover" or (options.continuations and choice.method != "exact")
    if teacher.engine == "http" and wanted and not goes_on(teacher):
        raise DataError(
            "the server does not go on from words that it is given (continue_final_message), which "
            "recover and continuations need",
            hint='on_policy.method = "span" and continuations = false need prompt_logprobs alone',
        )
    return choice


def _chosen(teacher: TeacherOptions, options: OnPolicyOptions, checkpoint: Path) -> Choice:
    if options.method not in ("auto", "none"):
        _must_work(teacher, options.method, checkpoint)
        return Choice(options.method, "as the recipe says")
    if teacher.engine == "transformers" and _vocabulary_fault(teacher, checkpoint) is None:
        return Choice("exact", "both have one vocabulary, so whole distributions can be compared")
    if teacher.engine != "http":
        return Choice(
            "aligned", "two vocabularies, and the teacher gives its likeliest tokens at each place"
        )
    if _grades(teacher):
        return Choice("span", "the server gives log probabilities of a text, but not its tokens")
    return Choice("recover", "the server only generates")


def _must_work(teacher: TeacherOptions, method: Method, checkpoint: Path) -> None:
    if method == "exact":
        fault = (
            _vocabulary_fault(teacher, checkpoint)
            if teacher.engine == "transformers"
            else f"teacher.engine is {teacher.engine}, exact needs transformers"
        )
        if fault is not None:
            raise DataError(f"on_policy.method exact cannot work: {fault}", hint="aligned can")
    if method == "span" and teacher.engine == "http" and not _grades(teacher):
        raise DataError(
            "on_policy.method span cannot work: the server gives no prompt_logprobs",
            hint="recover needs none",
        )
    if method == "aligned" and teacher.engine == "http":
        raise DataError(
            "on_policy.method aligned cannot work: a server does not list its tokens",
            hint="span, if it gives prompt_logprobs, else recover",
        )


def _vocabulary_fault(teacher: TeacherOptions, checkpoint: Path) -> str | None:
    from transformers import AutoTokenizer

    from pipeline.token_rows import compare_vocabularies

    folder = resolve_model(teacher.model, teacher.sha256)
    student, other = (
        AutoTokenizer.from_pretrained(path, local_files_only=True) for path in (checkpoint, folder)
    )
    try:
        compare_vocabularies(student, other)
    except DataError as error:
        return str(error.args[0])
    return None


def _grades(teacher: TeacherOptions) -> bool:
    request = Request(key="probe", messages=teacher_messages(teacher, "2 + 2 ="), begun="4")
    with closing(open_teacher(teacher)) as engine:
        try:
            engine.grade([request], top=1)
        except CannotDo:
            return False
    return True


def goes_on(teacher: TeacherOptions, lead: str = "") -> bool:
    """Whether what a server says next follows from what was begun for it, after `lead`."""
    asked = (Message(role="user", content="Count from 1 to 12. Numbers and commas only."),)
    counted = "1, 2, 3, 4, 5, 6, 7, 8, 9,"
    request = Request(
        key="probe", messages=asked, begun=f"{lead}{counted}", sampling=Sampling(max_tokens=4)
    )
    with closing(open_teacher(teacher)) as engine:
        try:
            ((_, said),) = engine.generate([request])
        except NotUnderstood:
            return False
    return said.text.lstrip().startswith("10")

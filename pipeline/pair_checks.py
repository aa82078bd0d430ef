"""What is looked at in a pair: vocabularies, ends of turns, templates, tags, supervised spans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError
from rich.text import Text

from pipeline.on_policy_options import PRESETS, Method
from pipeline.prompts import student_messages
from pipeline.recipe import Recipe, WorkedExample
from pipeline.records import Problem, Trace, Verdict
from pipeline.shared_vocabulary import shared_vocabulary
from pipeline.supervise import end_of_turn, rendered_answer, supervised_tokens
from pipeline.teacher import open_teacher
from pipeline.views import CONTROL, VIEWS, Material
from serve.engines.base import Engine
from serve.engines.token_bytes import token_bytes
from serve.errors import CannotDo, UntrustedFile
from serve.messages import Completion
from serve.reasoning import CLOSE_TAG, OPEN_TAG
from serve.template import ChatTemplate

# Below this share of the student's tokens, most places have nothing but the tail bucket.
RISKY_SHARE = 0.3
SHOWN = 3
# Views that take more than a worked example: measured lines, wrong attempts, other problems.
NOT_OF_ONE_TRACE, REFERENCE = ("steps", "errors", CONTROL), "full"
_GRADED_ONLY = {"forward_above_nats", "top_tokens"}
# What a method has no use for.
UNHEEDED: dict[str, frozenset[str]] = {
    "exact": frozenset(
        _GRADED_ONLY
        | {"passes", "learn_from", "right_as_examples", "continuations", "merge", "mistake_below"}
        | {"advantage_limit_nats", "ratio_limit", "continuation_temperature"}
    ),
    "span": frozenset({*_GRADED_ONLY, "beta"}),
    "recover": frozenset({"beta", "forward_above_nats", "advantage_limit_nats", "ratio_limit"}),
}
Kind = Literal["fine", "note", "risk", "refused"]


class Finding(NamedTuple):
    kind: Kind
    text: str


def findings(recipe: Recipe, checkpoint: Path) -> list[Finding]:
    """All that was found, in the order it was looked for."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    found = list(student_findings(recipe, checkpoint, tokenizer))
    if any(finding.kind == "refused" for finding in found):
        return found
    with closing(open_teacher(recipe.teacher.model_copy(update={"slots": 4}))) as teacher:
        found += _teacher_findings(recipe, tokenizer, teacher)
    return found


def student_findings(recipe: Recipe, checkpoint: Path, tokenizer: Any) -> Iterator[Finding]:
    """What the student's tokenizer and configuration show, without its weights."""
    if tokenizer.chat_template is None:
        yield Finding("refused", "the student's tokenizer has no chat template")
        return
    if tokenizer.eos_token_id is None:
        yield Finding("refused", "the student's tokenizer has no end token")
        return
    end = tokenizer.eos_token
    turns = [m.model_dump() for m in student_messages(recipe.asked_student, "2 + 2 =")]
    turns.append({"role": "assistant", "content": "4"})
    try:
        closed = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
    except TemplateError as error:
        yield Finding("refused", f"the student's chat template refuses a system turn: {error}")
        return
    try:
        asked = student_messages(recipe.asked_student, "2 + 2 =")
        template = ChatTemplate(tokenizer.chat_template, tokenizer.bos_token or "", end)
        template.render(asked)
    except UntrustedFile as error:
        yield Finding("refused", f"files could not be asked with it: {error.args[0]}")
        return
    if closed.endswith(end):
        yield Finding("fine", f"student ends a turn with its end token {end!r}")
    elif (mark := end_of_turn(tokenizer)) is not None:
        yield Finding("fine", f"student is taught to end with {mark!r}, as its template does")
    else:
        yield Finding("risk", f"student's template ends a turn with {closed[-12:]!r}, not {end!r}")
    head = _rows_of_the_head(checkpoint)
    used = len(tokenizer)
    yield Finding("note", f"student: {used:,} tokens, head of {head:,} rows, {head - used} padding")
    for tag in (OPEN_TAG, CLOSE_TAG):
        ids = tokenizer(tag, add_special_tokens=False)["input_ids"]
        if tokenizer.decode(ids) != tag:
            yield Finding("refused", f"student writes {tag} as {tokenizer.decode(ids)!r}")
        else:
            yield Finding("note", f"student writes {tag} in {len(ids)} tokens")


def _teacher_findings(recipe: Recipe, tokenizer: Any, teacher: Engine) -> Iterator[Finding]:
    try:
        pieces = teacher.vocabulary()
        ends = teacher.end_ids()
    except CannotDo as cannot:
        yield Finding("note", f"{cannot}; aligned and exact are out of question")
        return
    shared = shared_vocabulary(
        token_bytes(tokenizer),
        pieces,
        tokenizer.eos_token_id,
        ends,
        lambda texts: tokenizer(list(texts), add_special_tokens=False)["input_ids"],
    )
    share = shared.shared / shared.student_tokens
    yield Finding(
        "fine" if share >= RISKY_SHARE else "risk",
        f"{shared.shared:,} of the student's {shared.student_tokens:,} tokens are tokens of the "
        f"teacher too ({shared.teacher_tokens:,} in all): {100 * share:.0f} %",
    )
    yield Finding("fine" if ends else "refused", f"teacher ends a turn with {len(ends)} token(s)")
    digits = {bytes([byte]) for byte in b"0123456789"}
    single = digits <= set(pieces) and not any(p and len(p) > 1 and p.isdigit() for p in pieces)
    own = token_bytes(tokenizer)
    alike = single == (
        digits <= set(own) and not any(p and len(p) > 1 and p.isdigit() for p in own)
    )
    yield Finding(
        "fine" if alike else "risk",
        "digits are cut alike on both sides" if alike else "one side has tokens of several digits",
    )


def practice_findings(recipe: Recipe, method: Method) -> Iterator[Finding]:
    """What practice by the method that will run does with the recipe's words."""
    form = "with" if recipe.teacher.writes_tags else "without"
    yield Finding(
        "note",
        "teacher reads the student's own prompt, without worked examples"
        if method == "exact"
        else f"teacher grades in its own prompt, {form} {OPEN_TAG} tags",
    )
    options = recipe.on_policy
    said = options.model_fields_set - PRESETS.get(options.preset, {}).keys()
    for name in sorted(said & UNHEEDED.get(method, frozenset())):
        yield Finding("note", f"on_policy.{name} changes nothing for method {method}")


def shown_view(recipe: Recipe) -> str:
    """The recipe's view where it can be made of a worked example, else the whole."""
    view = recipe.supervise.view
    return REFERENCE if view in NOT_OF_ONE_TRACE else view


def _rows_of_the_head(checkpoint: Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    return int(config.get_text_config().vocab_size)


def shown_examples(recipe: Recipe, checkpoint: Path, view: str) -> list[Text]:
    """Worked examples as they would be trained on: prompt dim, supervised tokens green."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    worked = [_as_trace(example) for example in recipe.teacher.examples[:SHOWN]]
    length = partial(supervised_tokens, tokenizer=tokenizer)
    texts = []
    for shown in VIEWS[view](Material(worked, recipe.student, recipe.supervise, length)):
        ids, first = rendered_answer(shown, tokenizer)
        text = Text(tokenizer.decode(ids[:first]), style="dim")
        text.append(tokenizer.decode(ids[first:]), style="green")
        text.append(f"  [{first} tokens of prompt, {len(ids) - first} learnt]", style="cyan")
        texts.append(text)
    return texts


def _as_trace(example: WorkedExample) -> Trace:
    problem = Problem(question=example.question, answer=example.answer, family="worked")
    text = f"{example.reasoning.strip()}\nAnswer: {example.answer}"
    return Trace(
        key=problem.key,
        problem=problem,
        sample=0,
        model="",
        prompt_sha256="",
        completion=Completion(text=text, finish="stop", prompt_tokens=0, completion_tokens=0),
        verdict=Verdict(passed=True, reason="correct", extracted=example.answer, verifier=""),
    )

"""Which part of a trace is supervision: one small function a view, from traces to examples.

    answer       the answer alone
    steps        the lines that decide the answer (measured, `pipeline/steps.py`), then the answer
    full         all reasoning, then the answer
    full+answer  both `full` and `answer`, each in a prompt of its own
    multitask    two tasks, answer and reasoning apart (Distilling Step-by-Step, arXiv 2305.02301)
    short        `full` of each problem's shortest trace, where it fits a budget of tokens
    errors       `full`, and wrong attempts with the place where they fail and the repair
                 (LEMA, arXiv 2310.20689)
    plain        `full` without stylistic filler (`pipeline/plain_words.py`)
    style        a control: another problem's reasoning and answer, so that only the form is learned
                 ("The False Promise of Imitating Proprietary LLMs", arXiv 2305.15717)

A student taught by `answer` or `multitask` is asked with the brief system prompt ever after.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.plain_words import plain
from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions, SuperviseOptions
from pipeline.records import Example, Problem, Trace, content_key
from pipeline.steps import Steps
from pipeline.supervise import example_of, full_example, reasoning_of
from serve.errors import DataError
from serve.reasoning import FORMS, join_reasoning, only_reasoning

REPAIR = """{question}

A wrong attempt:
{attempt}
Answer: {answer}

Name its first wrong line and repair it."""


@dataclass(frozen=True)
class Material:
    """What the views choose from.

    `kept` are right traces, or all that ended in an answer (`curate.keep`); `wrong` are attempts at
    any of their problems that failed; `length` gives the supervised tokens of an example; `steps`
    is by trace key, for the view of that name.
    """

    kept: Sequence[Trace]
    student: StudentOptions
    options: SuperviseOptions
    length: Callable[[Example], int]
    wrong: Sequence[Trace] = ()
    steps: Mapping[str, Steps] = field(default_factory=dict)


View = Callable[[Material], Iterable[Example]]


def answer(material: Material) -> Iterator[Example]:
    for trace in material.kept:
        yield _example(trace, "answer", material.student.brief(), f"Answer: {_answer(trace)}")


def steps(material: Material) -> Iterator[Example]:
    for trace in material.kept:
        text = _joined(material.steps[trace.key].reasoning, trace, material.student)
        yield _example(trace, "steps", material.student, text)


def full(material: Material) -> Iterator[Example]:
    for trace in material.kept:
        yield full_example(trace, material.student)


def full_and_answer(material: Material) -> Iterator[Example]:
    yield from full(material)
    yield from answer(material)


def multitask(material: Material) -> Iterator[Example]:
    """λ of the paper is a share: of so many traces the reasoning is a task too.

    In the mean over the draw this is a weighted sum of both losses, and costs no tokens for what is
    not learned. Its weights count tokens, where the paper takes each task's mean: reasoning of 50
    tokens beside answers of 6 weighs eight times as much, at a share of 0.12 as much.
    """
    yield from answer(material)
    for trace in material.kept:
        drawn = int(content_key("explain", trace.key)[:8], 16) / 2**32
        if drawn < material.options.explain_share:
            reasoning = reasoning_of(trace.completion.text)
            text = only_reasoning(reasoning, FORMS[material.student.tags])
            yield _example(trace, "explain", material.student, text)


def short(material: Material) -> Iterator[Example]:
    for traces in _by_problem(material.kept).values():
        examples = [full_example(trace, material.student) for trace in traces]
        shortest = min(examples, key=lambda e: (material.length(e), e.key))
        if material.length(shortest) <= material.options.short_tokens:
            yield shortest


def errors(material: Material) -> Iterator[Example]:
    """Raises DataError when no wrong attempt stands beside a right one."""
    yield from full(material)
    # `curate.keep = "answered"` keeps wrong ones as well.
    right = _by_problem([t for t in material.kept if t.verdict.passed])
    pairs = [(w, right[w.problem.key][0]) for w in material.wrong if w.problem.key in right]
    if not pairs:
        raise DataError(
            "view errors: no wrong attempt at a problem that was also solved",
            hint="raise traces.samples",
        )
    for wrong, repair in pairs:
        yield _repair(wrong, repair, material.student)


def plainly(material: Material) -> Iterator[Example]:
    for trace in material.kept:
        text = _joined(plain(reasoning_of(trace.completion.text)), trace, material.student)
        yield _example(trace, "plain", material.student, text)


def style(material: Material) -> Iterator[Example]:
    """Each trace takes the next one's words, of the same family and with another answer."""
    families: defaultdict[str, list[Trace]] = defaultdict(list)
    for trace in sorted(material.kept, key=lambda t: t.key):
        families[trace.problem.family].append(trace)
    for traces in families.values():
        for place, trace in enumerate(traces):
            others = [*traces[place + 1 :], *traces[:place]]
            other = next((o for o in others if _answer(o) != _answer(trace)), None)
            if other is not None:
                text = _joined(reasoning_of(other.completion.text), other, material.student)
                yield _example(trace, "style", material.student, text)


# Not among the views that a study compares unless it is told to.
CONTROL = "style"
VIEWS: dict[str, View] = {
    "answer": answer,
    "steps": steps,
    "full": full,
    "full+answer": full_and_answer,
    "multitask": multitask,
    "short": short,
    "errors": errors,
    "plain": plainly,
    CONTROL: style,
}


def view_sentence(counts: Mapping[str, Any]) -> str:
    """What was made of the traces, for a reader of the report."""
    made = (
        f"Supervision: view {counts['view']}, {counts['traces']} traces made "
        f"{counts['examples']} examples of {counts['supervised_tokens']} supervised tokens."
    )
    if "general" in counts:
        made += f" {counts['general']} of them are general data without reasoning"
        wanted = counts.get("general_wanted")
        made += f": its source has no more, {wanted} were wanted." if wanted else "."
    if "lines" not in counts:
        return made
    return made + (
        f" Of {counts['lines']} lines {counts['lines_cut']} were left out: without them the "
        f"{counts['step_scorer']} thought the answer at most {counts['step_drop_nats']} nats less "
        "likely."
    )


def _repair(wrong: Trace, right: Trace, student: StudentOptions) -> Example:
    """The attempt is part of the question, so that its mistake is read and never learned."""
    attempt = reasoning_of(wrong.completion.text)
    false = [*attempt.splitlines(), f"Answer: {_answer(wrong)}"]
    true = [*reasoning_of(right.completion.text).splitlines(), f"Answer: {_answer(right)}"]
    # Their last lines differ, so one line is the first that does.
    at = next(i for i, line in enumerate(false) if line not in true[i : i + 1])
    reasoning = "\n".join([f"Wrong: {false[at]}", *true[at:-1]])
    question = REPAIR.format(
        question=wrong.problem.question, attempt=attempt, answer=_answer(wrong)
    )
    asked = Problem(question=question, answer=wrong.problem.answer, family=wrong.problem.family)
    key, text = content_key(wrong.key, "errors"), join_reasoning(reasoning, "")
    return example_of(key, asked, text, _answer(right), student, trace=right.key)


def _joined(reasoning: str, trace: Trace, student: StudentOptions) -> str:
    return join_reasoning(reasoning, _answer(trace), FORMS[student.tags])


def _example(trace: Trace, view: str, student: StudentOptions, completion: str) -> Example:
    return Example(
        key=content_key(trace.key, view),
        family=trace.problem.family,
        prompt=tuple(m.model_dump() for m in student_messages(student, trace.problem.question)),
        completion=completion,
        trace=trace.key,
    )


def _answer(trace: Trace) -> str:
    return trace.verdict.extracted or ""


def _by_problem(traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    found: defaultdict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        found[trace.problem.key].append(trace)
    return found

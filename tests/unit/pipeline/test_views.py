"""Every view of one trace, exactly; and what cannot be viewed."""

import pytest

from pipeline.recipe import StudentOptions, SuperviseOptions
from pipeline.records import Problem, Trace, Verdict
from pipeline.steps import Steps
from pipeline.views import VIEWS, Material, view_sentence
from serve.errors import DataError
from serve.messages import Completion

STUDENT = StudentOptions(model="path:none", system="Think.", system_brief="Answer.")
RIGHT = "Okay, so 6 * 87:\n6 * 80 = 480\n6 * 7 = 42\n480 + 42 = 522\nAnswer: 522"
WRONG = "Okay, so 6 * 87:\n6 * 80 = 480\n6 * 7 = 48\n480 + 48 = 528\nAnswer: 528"
REASONING = RIGHT.rpartition("\n")[0]


def trace(key, text, passed=True, question="6 * 87 ="):
    answer = text.rpartition(": ")[2]
    return Trace(
        key=key,
        problem=Problem(question=question, answer="522", family="products"),
        sample=0,
        model="m",
        prompt_sha256="p",
        completion=Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=9),
        verdict=Verdict(
            passed=passed, reason="correct" if passed else "wrong", extracted=answer, verifier="v"
        ),
    )


def made(view, kept=None, **more):
    options = {k: more.pop(k) for k in ("explain_share", "short_tokens") if k in more}
    material = Material(
        kept=kept or [trace("k", RIGHT)],
        student=STUDENT,
        options=SuperviseOptions(view=view, **options),
        length=lambda example: len(example.completion),
        **more,
    )
    return [(e.prompt[0]["content"], e.completion) for e in VIEWS[view](material)]


FULL = ("Think.", f"<think>\n{REASONING}\n</think>\nAnswer: 522")
BRIEF = ("Answer.", "Answer: 522")


@pytest.mark.parametrize(
    ("view", "examples"),
    [
        ("answer", [BRIEF]),
        ("full", [FULL]),
        ("full+answer", [FULL, BRIEF]),
        ("multitask", [BRIEF, ("Think.", f"<think>\n{REASONING}\n</think>")]),
        (
            "plain",
            [
                (
                    "Think.",
                    "<think>\n6 * 87:\n6 * 80 = 480\n6 * 7 = 42\n480 + 42 = 522\n</think>\n"
                    "Answer: 522",
                )
            ],
        ),
    ],
)
def test_a_trace_in_a_view(view, examples):
    assert made(view) == examples


def test_steps_are_the_lines_that_were_measured_to_matter():
    steps = Steps(
        key="x",
        lines=tuple(REASONING.splitlines()),
        cost_nats=(0.0, 0.5, 0.4, 3.0),
        kept=(False, True, True, True),
    )
    assert made("steps", steps={"k": steps}) == [
        ("Think.", "<think>\n6 * 80 = 480\n6 * 7 = 42\n480 + 42 = 522\n</think>\nAnswer: 522")
    ]


def test_errors_show_the_first_wrong_line_and_the_way_on_from_it():
    asked = [trace("k", RIGHT)]
    examples = made("errors", asked, wrong=[trace("w", WRONG, passed=False)])
    assert examples[0] == FULL
    assert examples[1] == (
        "Think.",
        "<think>\nWrong: 6 * 7 = 48\n6 * 7 = 42\n480 + 42 = 522\n</think>\nAnswer: 522",
    )
    material = Material(
        asked, STUDENT, SuperviseOptions(), len, wrong=[trace("w", WRONG, passed=False)]
    )
    (_, repair) = VIEWS["errors"](material)
    assert repair.prompt[1]["content"] == (
        "6 * 87 =\n\nA wrong attempt:\nOkay, so 6 * 87:\n6 * 80 = 480\n6 * 7 = 48\n480 + 48 = 528\n"
        "Answer: 528\n\nName its first wrong line and repair it."
    )


def test_an_attempt_wrong_in_its_answer_alone_is_repaired_there():
    wrong = f"{REASONING}\nAnswer: 525"
    (_, (_, completion)) = made("errors", wrong=[trace("w", wrong, passed=False)])
    assert completion == "<think>\nWrong: Answer: 525\n</think>\nAnswer: 522"


def test_errors_need_a_wrong_attempt_beside_a_right_one():
    other = trace("w", WRONG, passed=False, question="7 * 87 =")
    with pytest.raises(DataError, match="no wrong attempt at a problem that was also solved"):
        made("errors", wrong=[other])


def test_a_wrong_trace_that_was_kept_repairs_nothing():
    """`curate.keep = "answered"` keeps right and wrong ones."""
    wrong = trace("a", WRONG, passed=False)
    *_, repaired = made("errors", [wrong, trace("b", RIGHT)], wrong=[wrong])
    assert repaired[1].startswith("<think>\nWrong: 6 * 7 = 48")
    with pytest.raises(DataError, match="no wrong attempt at a problem that was also solved"):
        made("errors", [wrong], wrong=[wrong])


def test_short_takes_the_shortest_trace_of_a_problem_within_its_budget():
    kept = [trace("a", RIGHT), trace("b", "6 * 87 = 522\nAnswer: 522")]
    short = ("Think.", "<think>\n6 * 87 = 522\n</think>\nAnswer: 522")
    assert made("short", kept, short_tokens=len(short[1])) == [short]
    assert made("short", kept, short_tokens=len(short[1]) - 1) == []


def test_style_teaches_the_words_of_another_problem_with_another_answer():
    kept = [
        trace("a", "1 + 1 = 2\nAnswer: 2", question="1 + 1 ="),
        trace("b", "2 * 1 = 2\nAnswer: 2", question="2 * 1 ="),
        trace("c", "3 + 1 = 4\nAnswer: 4", question="3 + 1 ="),
    ]
    sum_of_three = "<think>\n3 + 1 = 4\n</think>\nAnswer: 4"
    assert made("style", kept) == [
        ("Think.", sum_of_three),
        ("Think.", sum_of_three),
        ("Think.", "<think>\n1 + 1 = 2\n</think>\nAnswer: 2"),
    ]
    assert made("style", kept[:2]) == []


def test_lambda_is_the_share_of_traces_whose_reasoning_is_a_task():
    kept = [trace(f"k{n}", RIGHT, question=f"{n}?") for n in range(400)]
    explained = sum(c.startswith("<think>") for _, c in made("multitask", kept, explain_share=0.25))
    assert explained == 108
    assert len(made("multitask", kept)) == 800


def test_the_report_says_what_was_cut_and_at_which_threshold():
    counts = {"view": "full", "traces": 3, "examples": 3, "supervised_tokens": 90}
    said = "Supervision: view full, 3 traces made 3 examples of 90 supervised tokens."
    assert view_sentence(counts) == said
    cut = counts | {
        "lines": 12,
        "lines_cut": 4,
        "step_drop_nats": 0.1,
        "step_scorer": "student",
    }
    assert view_sentence(cut) == said + (
        " Of 12 lines 4 were left out: without them the student thought the answer at most 0.1 nats"
        " less likely."
    )


def test_the_report_says_how_much_general_data_was_missing():
    counts = {"view": "full", "traces": 3, "examples": 5, "supervised_tokens": 90, "general": 2}
    said = "Supervision: view full, 3 traces made 5 examples of 90 supervised tokens."
    told = " 2 of them are general data without reasoning"
    assert view_sentence(counts) == f"{said}{told}."
    missing = view_sentence(counts | {"general_wanted": 7})
    assert missing == f"{said}{told}: its source has no more, 7 were wanted."

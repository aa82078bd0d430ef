"""The page: one question, up to four columns, and what the run measured.

Every model streams at once; all columns are drawn together, so that what they say can be compared
word by word while they say it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from secrets import randbelow
from typing import Any, NamedTuple

import gradio as gr

from apps.conversation import Said, say
from apps.problem_source import ProblemSource
from apps.shown import (
    MARKS,
    about,
    differences,
    numbers,
    reasoning_and_answer,
    run_page,
)
from serve.conversations import Ask
from serve.messages import Sampling
from serve.pool import Pool

LONGEST_QUESTION_CHARACTERS = 4_000
COLUMNS, SHOWN_FIRST = 4, 2
QUEUE = 16
EXAMPLE = "Solve the following multiplication: 23 * 47."
NOBODY = "(nobody)"


class Column(NamedTuple):
    """The parts of one column; the last four are drawn anew while it answers."""

    whole: gr.Column
    choice: gr.Dropdown
    about: gr.HTML
    reasoning: gr.HTML
    answer: gr.HTML
    numbers: gr.HTML

    @property
    def drawn(self) -> list[gr.HTML]:
        return [self.about, self.reasoning, self.answer, self.numbers]


class Page:
    """What the page's buttons do."""

    def __init__(self, run: Path, pool: Pool, problems: ProblemSource) -> None:
        self.run, self.pool, self.problems = run, pool, problems

    def answers(
        self,
        question: str,
        problem: dict[str, Any] | None,
        temperature: float,
        limit: float,
        budget: float | None,
        seed: float,
        *names: str,
    ) -> Iterator[list[str]]:
        """Stream (about, reasoning, answer, numbers) of every column."""
        chosen = [name for name in names if name in self.pool.entries]
        refused = self._refused(question.strip()) if chosen else "Choose a model first."
        if refused:
            # In the first column; the others are emptied, and no model is loaded for it.
            told = reasoning_and_answer(Said(problem=refused), None)
            yield ["", *told, "", *[""] * 4 * (len(names) - 1)]
            return
        ask = Ask(
            sampling=Sampling(temperature=temperature, top_p=0.95, seed=int(seed or 0)),
            max_tokens=int(limit),
            reasoning_budget=None if budget is None else int(budget),
        )
        said: list[Said] = [Said() for _ in chosen]
        models = [self.pool.model(name) for name in chosen]
        yield self._drawn(names, said)
        for said in say(models, question.strip(), ask):
            yield self._drawn(names, said)
        if problem is not None and _same(problem, question):
            verdicts = [self._verdict(problem, one) for one in said]
            yield self._drawn(names, said, verdicts)

    def _refused(self, question: str) -> str:
        if not question:
            return "Type a question first."
        # The box has this limit too, but only in the browser.
        if len(question) > LONGEST_QUESTION_CHARACTERS:
            return f"A question has at most {LONGEST_QUESTION_CHARACTERS} characters."
        return ""

    def _drawn(
        self, names: tuple[str, ...], said: list[Said], verdicts: list[str] | None = None
    ) -> list[str]:
        """The HTML of all columns; those that nobody answers in are empty."""
        told = iter(zip(said, differences(said), verdicts or [""] * len(said), strict=True))
        cells: list[str] = []
        for name in names:
            one = next(told, None) if name in self.pool.entries else None
            if one is None:
                cells += ["", "", "", ""]
                continue
            words, differs_at, verdict = one
            model = self.pool.model(name) if words.tokens or not words.problem else None
            parts = reasoning_and_answer(words, differs_at)
            cells += [about(model) if model else "", *parts, numbers(words, verdict)]
        return cells

    def _verdict(self, problem: dict[str, Any], said: Said) -> str:
        if said.problem is not None:
            return ""
        text = f"<think>\n{said.reasoning}\n</think>\n{said.answer}"
        passed = self.problems.passed(problem, text, cut=said.finish == "length")
        right = "" if passed else f" right: {problem['answer']}"
        return f"· {MARKS[passed]}{right}"

    def another(self) -> tuple[Any, dict[str, Any] | None, str]:
        """(question, its problem, a note) of a problem nobody has seen."""
        reply = self.problems.another(randbelow(2**31))
        if "error" in reply:
            return gr.skip(), None, str(reply["error"])
        problem = reply["problem"]
        return problem["question"], problem, f"a problem of {problem['family']}, not trained on"

    def keep(self, question: str, problem: dict[str, Any] | None) -> str:
        """Append the shown problem to the regression cases."""
        if problem is None or not _same(problem, question):
            return "only a fresh problem can be kept: its right answer is known"
        return f"kept in {self.problems.keep(problem).name}"


def _same(problem: dict[str, Any], question: str) -> bool:
    """Whatever a browser made of its white space."""
    return str(problem["question"]).split() == question.split()


def build(run: Path, pool: Pool, problems: ProblemSource) -> gr.Blocks:
    """The page over the models of one folder."""
    page, names = Page(run, pool, problems), list(pool.entries)
    with gr.Blocks(title="Retort", analytics_enabled=False) as blocks:
        gr.Markdown(f"## Retort · {run.resolve().name}\n{_introduction(names)}")
        with gr.Tab("Ask"):
            _ask_tab(page, names)
        with gr.Tab("What was measured"):
            gr.HTML(run_page(run))
    blocks.queue(max_size=QUEUE)
    return blocks


def _introduction(names: list[str]) -> str:
    told = "All chosen models answer the same question."
    return told if "teacher" in names else f"{told} This folder holds no teacher."


def _ask_tab(page: Page, names: list[str]) -> None:
    problem = gr.State(None)
    question = gr.Textbox(
        label="Question", placeholder=EXAMPLE, max_length=LONGEST_QUESTION_CHARACTERS, lines=2
    )
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", min_width=80)
        stop = gr.Button("Stop", min_width=80)
        fresh = page.problems.available
        another = gr.Button("Another problem", visible=fresh, min_width=140)
        keep = gr.Button("Keep as regression case", visible=fresh, min_width=140)
    note = gr.Markdown()
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            temperature = gr.Slider(0.0, 1.5, 0.0, step=0.1, label="Temperature (0 = greedy)")
            limit = gr.Slider(16, 1024, 256, step=16, label="Longest answer, tokens")
        with gr.Row():
            budget = gr.Number(None, label="Thinking budget, tokens (empty: none)", minimum=0)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31)
            shown = gr.Radio(list(range(1, COLUMNS + 1)), value=SHOWN_FIRST, label="Columns")
    with gr.Row():
        columns = [_column(names, index) for index in range(COLUMNS)]
    options = [temperature, limit, budget, seed]
    event = gr.on(
        [ask.click, question.submit],
        page.answers,
        [question, problem, *options, *(column.choice for column in columns)],
        [part for column in columns for part in column.drawn],
        concurrency_limit=4,
        show_progress="hidden",
        api_name="answers",
    )
    stop.click(None, cancels=[event])
    shown.change(
        lambda count, *chosen: _shown(names, count, chosen),
        [shown, *(column.choice for column in columns)],
        [part for column in columns for part in (column.whole, column.choice)],
        api_name="columns",
    )
    another.click(page.another, None, [question, problem, note], api_name="another")
    keep.click(page.keep, [question, problem], note, api_name="keep")


def _shown(names: list[str], count: int, chosen: Sequence[str]) -> list[Any]:
    """Columns beyond `count` are hidden, and nobody answers there; others keep who was chosen."""
    changes: list[Any] = []
    for index, name in enumerate(chosen):
        kept = name if index < count and name != NOBODY else _first(names, index, count)
        changes += [gr.Column(visible=index < count), gr.Dropdown(value=kept)]
    return changes


def _first(names: list[str], index: int, count: int) -> str:
    return names[index] if index < min(count, len(names)) else NOBODY


def _column(names: list[str], index: int) -> Column:
    chosen = _first(names, index, SHOWN_FIRST)
    with gr.Column(min_width=280, visible=index < SHOWN_FIRST) as whole:
        choice = gr.Dropdown([NOBODY, *names], value=chosen, label=f"Model {index + 1}")
        weight = gr.HTML()
        with gr.Accordion("Reasoning", open=False):
            reasoning = gr.HTML(elem_classes="reasoning")
        answer = gr.HTML(label="Answer", elem_classes="answer")
        figures = gr.HTML()
    return Column(whole, choice, weight, reasoning, answer, figures)

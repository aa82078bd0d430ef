"""What a rung is asked beyond its evaluation: suites, styles, samples, forced answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.asking import request_for
from pipeline.contamination import Overlap, Trained, overlaps
from pipeline.examine import Rung, sampling_of
from pipeline.forced import forced_beginnings
from pipeline.ladder import BASE, Judged
from pipeline.recipe import EvaluateOptions, Recipe
from pipeline.records import General, Problem, Trace, content_key
from pipeline.store import read_records
from pipeline.supervise import reasoning_of
from pipeline.transfer_suites import Suites, styled, suite_problems
from pipeline.transfer_summary import FORCED, FRESH, SAMPLES, STUDENTS, STYLES, TEACHER
from serve.messages import Message, Request, Sampling
from serve.reasoning import FORMS, join_reasoning

FORCED_TOKENS = 48


class Question(NamedTuple):
    """`style` is the style's name, or how much reasoning an answer is forced after."""

    suite: str
    style: str
    sample: int
    problem: Problem
    request: Request


class Questions:
    """What the rungs of a run are asked, and of what the run trained on."""

    def __init__(
        self,
        root: Path,
        recipe: Recipe,
        suites: tuple[Suites, Path],
        answered: Sequence[Judged],
    ) -> None:
        """`suites` with the folder they lie in; `answered`: the rungs' answers to fresh items."""
        self.options: EvaluateOptions = recipe.evaluate
        self.suites, folder = suites
        self.seed = recipe.run.seed
        sides = {
            side: list(read_records(root / "01-problems" / f"{side}.jsonl", Problem))
            for side in ("train", "practice", "eval", "gate")
        }
        self.fresh = sides["eval"]
        self.traces = list(read_records(root / "03-curated" / "kept.jsonl", Trace))
        practised = recipe.on_policy.method != "none"
        taught = [*sides["train"], *(sides["practice"] if practised else [])]
        # Imported traces have problems that no family of the recipe drew.
        taught += [t.problem for t in self.traces]
        self.trained_on = list({p.key: p for p in taught}.values())
        # Of practice too, whether or not there was any, so that all runs are asked the same.
        known = {p.question for p in [*self.trained_on, *(p for s in sides.values() for p in s)]}
        families = {p.family for p in self.trained_on}
        self.problems = {
            suite.name: suite_problems(suite, folder, self.seed, known, families)
            for suite in self.suites.suite
        }
        general = root / "02-general" / "general.jsonl"
        self.general = list(read_records(general, General)) if recipe.general.wanted else []
        self.answered = answered
        self.student = recipe.asked_student
        self.brief = self.student.system != recipe.student.system
        self.shots = _shots(self.traces)

    def overlaps(self) -> list[Overlap]:
        """Evaluation items and items of the suites that look like what was trained on."""
        trained = [Trained("prompt", p.key, p.question, p.key) for p in self.trained_on]
        trained += [Trained("trace", t.key, t.completion.text, t.problem.key) for t in self.traces]
        for row in self.general:
            trained += [
                Trained("prompt", row.key, row.prompt, row.key),
                Trained("trace", row.key, row.response, row.key),
            ]
        return overlaps({FRESH: self.fresh, **self.problems}, trained)

    def of(self, rung: Rung, sampled: bool = True, forced: bool = True) -> Iterator[Question]:
        """Everything `rung` is to be asked; `sampled`: many samples of a few items too; `forced`:
        its own answers again, from what they began with."""
        yield from self._of_suites(rung)
        yield from self._of_styles(rung)
        if sampled and rung.name in STUDENTS:
            yield from self._of_samples(rung)
        if forced:
            yield from self.forced(rung)

    def _whole(self, rung: Rung, messages: tuple[Message, ...]) -> Request:
        return request_for(rung.identity, messages, Sampling(max_tokens=self.options.max_tokens))

    def _of_suites(self, rung: Rung) -> Iterator[Question]:
        for suite in self.suites.suite:
            for p in self.problems[suite.name]:
                *before, last = rung.messages(p)
                said = suite.text.replace("{question}", last.content)
                messages = (*before, last.model_copy(update={"content": said}))
                yield Question(suite.name, "", 0, p, self._whole(rung, messages))

    def _of_styles(self, rung: Rung) -> Iterator[Question]:
        for style in self.suites.style:
            for p in self.fresh[: self.suites.styles.items]:
                shots = [self._shown(rung, s) for s in self.shots.get(p.family, ())[: style.shots]]
                messages = styled(rung.messages(p), style, shots)
                if messages is not None:
                    yield Question(STYLES, style.name, 0, p, self._whole(rung, messages))

    def _shown(self, rung: Rung, trace: Trace) -> tuple[Message, Message]:
        """A solved problem in the form that the rung itself answers in: a student that copies
        another form would open a tag and never close it."""
        answer = trace.verdict.extracted or ""
        reasoning = reasoning_of(trace.completion.text)
        if rung.name in (TEACHER, BASE):
            text = f"{reasoning}\nAnswer: {answer}"
        elif self.brief:
            text = f"Answer: {answer}"
        else:
            text = join_reasoning(reasoning, answer, FORMS[self.student.tags])
        return (
            Message(role="user", content=trace.problem.question),
            Message(role="assistant", content=text),
        )

    def _of_samples(self, rung: Rung) -> Iterator[Question]:
        options = self.suites.samples
        for p in self.fresh[: options.items]:
            for sample in range(1, options.k + 1):
                how = sampling_of(self.options, self.seed, p.key, sample)
                request = request_for(rung.identity, rung.messages(p), how, sample)
                yield Question(SAMPLES, "", sample, p, request)

    def forced(self, rung: Rung) -> Iterator[Question]:
        """Its own answers again, from what they began with."""
        by_key = {p.key: p for p in self.fresh[: self.suites.forced.items]}
        own = [a for a in self.own(rung) if a.item in by_key]
        references = {key: p.answer for key, p in by_key.items()}
        short = Sampling(max_tokens=FORCED_TOKENS)
        for (item, name), begun in forced_beginnings(own, references).items():
            p = by_key[item]
            request = request_for(rung.identity, rung.messages(p), short)
            changed = {"begun": begun, "key": content_key(request.key, begun)}
            yield Question(FORCED, name, 0, p, request.model_copy(update=changed))

    def own(self, rung: Rung) -> list[Judged]:
        """What the rung answered greedily in the run's evaluation."""
        return [a for a in self.answered if a.rung == rung.name and a.sample == 0]


def _shots(traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    """Right traces by family, a problem's first: what few-shot prompts begin with. In the order of
    problems, which runs over the same problems share."""
    found: dict[str, dict[str, Trace]] = {}
    for trace in sorted(traces, key=lambda t: (t.problem.key, t.key)):
        if trace.verdict.passed:  # `curate.keep = "answered"` keeps wrong ones as well
            found.setdefault(trace.problem.family, {}).setdefault(trace.problem.key, trace)
    return {family: list(by_problem.values()) for family, by_problem in found.items()}

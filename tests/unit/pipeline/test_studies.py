"""Studies beside a run: what they take from it, and when what they know of it is stale."""

import json

import pytest

from pipeline import sft
from pipeline.all import stages
from pipeline.compare_recipes import _fingerprint
from pipeline.examine import Rung
from pipeline.imported import IMPORTED, share_imported
from pipeline.model_card import model_card
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import General, Problem, Trace, Verdict
from pipeline.run import Manifest, RunDir
from pipeline.store import write_json, write_records
from pipeline.transfer_questions import Questions
from pipeline.transfer_suites import Style, Suite, Suites, load_suites
from serve.messages import Completion, Message

SUITES = load_suites("embedded")


def manifests(run, recipe):
    """As if every stage were done."""
    done = {}
    for stage in stages(recipe):
        inputs = {name: done[name] for name in stage.needs}
        manifest = Manifest(
            stage=stage.name,
            fingerprint=run.fingerprint(stage, inputs, recipe.run.seed),
            files={"a": "1"},
            sources=stage.sources_now(),
            counts={},
            took_s=0,
        )
        write_json(run.manifest_path(stage), manifest.model_dump(mode="json"))
        done[stage.name] = manifest


def test_a_method_is_measured_again_when_its_problems_or_general_data_changed(tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}")
    recipe = load_recipe(find_recipe("embedded/r1"), (f'general.files=["{mine}"]',))
    run = RunDir(tmp_path / "r1")
    manifests(run, recipe)
    before = _fingerprint(run, recipe, "04-sft", 10, SUITES)
    assert before == _fingerprint(run, recipe, "04-sft", 10, SUITES)
    assert before not in (None, _fingerprint(run, recipe, "04-sft", 9, SUITES))
    mine.write_text('{"prompt": "other"}')
    assert _fingerprint(run, recipe, "04-sft", 10, SUITES) is None
    mine.write_text("{}")
    problems = run.manifest_path(stages(recipe)[0])
    content = json.loads(problems.read_text())
    problems.write_text(json.dumps(content | {"files": {"a": "2"}}))
    assert _fingerprint(run, recipe, "04-sft", 10, SUITES) is None


def test_a_method_that_was_taught_by_other_code_is_taught_again(tmp_path, monkeypatch):
    recipe = load_recipe(find_recipe("embedded/plain"))
    run = RunDir(tmp_path / "plain")
    manifests(run, recipe)
    assert _fingerprint(run, recipe, "04-sft", 10, SUITES) is not None
    monkeypatch.setattr(sft, "STAGE_VERSION", sft.STAGE_VERSION + 1)
    assert _fingerprint(run, recipe, "04-sft", 10, SUITES) is None


def test_imported_traces_are_those_of_the_run_or_none(tmp_path):
    run, study = tmp_path / "run", tmp_path / "study"
    run.mkdir()
    study.mkdir()
    (run / IMPORTED).write_text("a trace\n")
    share_imported(run, study)
    assert (study / IMPORTED).read_text() == "a trace\n"
    (run / IMPORTED).unlink()
    share_imported(run, study)
    assert list(study.iterdir()) == []


def trace(problem):
    return Trace(
        key=f"trace of {problem.key}",
        problem=problem,
        sample=0,
        model="t",
        prompt_sha256="",
        completion=Completion(text="x", finish="stop", prompt_tokens=1, completion_tokens=1),
        verdict=Verdict(passed=True, reason="correct", extracted="1", verifier="v"),
    )


def test_a_question_that_came_with_imported_traces_was_trained_on(tmp_path):
    own, brought, fresh = (
        Problem(question=f"What is {n} and {n} and {n} and {n} in all?", answer="1", family="f")
        for n in (1, 2, 3)
    )
    for side, problems in (("train", [own]), ("practice", []), ("eval", [fresh]), ("gate", [])):
        write_records(tmp_path / "01-problems" / f"{side}.jsonl", problems)
    write_records(tmp_path / "03-curated" / "kept.jsonl", [trace(own), trace(brought)])
    suites = SUITES[0].model_copy(update={"suite": ()})
    recipe = load_recipe(find_recipe("default"))
    questions = Questions(tmp_path, recipe, (suites, SUITES[1]), [])
    assert [p.key for p in questions.trained_on] == [own.key, brought.key]
    questions.fresh = [Problem(question=f"{brought.question} Say it.", answer="1", family="f")]
    found = {(o.kind, o.where, o.source) for o in questions.overlaps()}
    assert ("8-gram", "prompt", brought.key) in found


def test_practice_problems_and_general_data_count_where_they_were_learnt_from(tmp_path):
    own, practised, fresh = (
        Problem(question=f"What is {n} and {n} and {n} and {n} in all?", answer="1", family="f")
        for n in (1, 2, 3)
    )
    for side, problems in (
        ("train", [own]),
        ("practice", [practised]),
        ("eval", [fresh]),
        ("gate", []),
    ):
        write_records(tmp_path / "01-problems" / f"{side}.jsonl", problems)
    wrong = trace(own).model_copy(
        update={"verdict": Verdict(passed=False, reason="wrong", extracted="2", verifier="v")}
    )
    write_records(tmp_path / "03-curated" / "kept.jsonl", [wrong])
    general = General(prompt="Tell me.", response=f"I was once asked: {fresh.question}")
    write_records(tmp_path / "02-general" / "general.jsonl", [general])
    suites = (SUITES[0].model_copy(update={"suite": ()}), SUITES[1])
    plain = Questions(tmp_path, load_recipe(find_recipe("embedded/plain")), suites, [])
    assert [p.key for p in plain.trained_on] == [own.key]
    assert [(o.item, o.source) for o in plain.overlaps() if o.source == general.key] == []
    # A wrong trace is no example of how to solve a problem.
    assert plain.shots == {}
    gkd = Questions(tmp_path, load_recipe(find_recipe("embedded/gkd")), suites, [])
    assert [p.key for p in gkd.trained_on] == [own.key, practised.key]
    r1 = Questions(tmp_path, load_recipe(find_recipe("embedded/r1")), suites, [])
    found = {(o.kind, o.where, o.item) for o in r1.overlaps() if o.source == general.key}
    assert ("8-gram", "trace", fresh.key) in found


def rung(name):
    def messages(problem):
        return (
            Message(role="system", content="Think."),
            Message(role="user", content=problem.question),
        )

    return Rung(name=name, identity=name, size_bytes=None, open=lambda: None, messages=messages)


@pytest.mark.parametrize(
    ("recipe", "name", "shown"),
    [
        ("plain", "SFT student", "<think>\nx\n</think>\nAnswer: 1"),
        ("plain", "base student", "x\nAnswer: 1"),
        ("plain", "teacher", "x\nAnswer: 1"),
        ("step-by-step", "SFT student", "Answer: 1"),
        (
            "bespoke-stratos",
            "SFT student",
            "<|begin_of_thought|>\nx\n<|end_of_thought|>\n<|begin_of_solution|>\nAnswer: 1\n"
            "<|end_of_solution|>",
        ),
    ],
)
def test_solved_problems_are_shown_in_the_form_that_is_answered_in(tmp_path, recipe, name, shown):
    own, fresh = (Problem(question=f"{n}?", answer="1", family="f") for n in (1, 2))
    for side, problems in (("train", [own]), ("practice", []), ("eval", [fresh]), ("gate", [])):
        write_records(tmp_path / "01-problems" / f"{side}.jsonl", problems)
    write_records(tmp_path / "03-curated" / "kept.jsonl", [trace(own)])
    suites = Suites(suite=(), style=(Style(name="few-shot", shots=1),))
    read = load_recipe(find_recipe(f"embedded/{recipe}"))
    questions = Questions(tmp_path, read, (suites, tmp_path), [])
    (asked,) = questions.of(rung(name), sampled=False)
    said = [(m.role, m.content) for m in asked.request.messages]
    assert said[1:] == [("user", "1?"), ("assistant", shown), ("user", "2?")]


def test_a_suite_asks_in_its_own_words(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n')
    for side in ("train", "practice", "eval", "gate"):
        write_records(tmp_path / "01-problems" / f"{side}.jsonl", [])
    write_records(tmp_path / "03-curated" / "kept.jsonl", [])
    suites = Suites(suite=(Suite(name="own", file="own.jsonl", text="{question} In a box."),))
    read = load_recipe(find_recipe("embedded/plain"))
    (asked,) = Questions(tmp_path, read, (suites, tmp_path), []).of(rung("r"), sampled=False)
    said = [m.content for m in asked.request.messages]
    assert said == ["Think.", "2 + 2? In a box."]


COUNTS = {
    "01-problems": {"train": {"gcd": 4}},
    "02-traces": {"traces": 8},
    "03-curated": {"kept": {"gcd": 3}},
    "04-examples": {"traces": 3, "general": 2},
    "04-sft": {"examples": 8},
}
GATE = {"rows": [], "margin_points": 3.0, "chosen": {"name": "", "file": "", "why": "none"}}
LADDER = {"items": 4, "rows": [], "k": 2}


def card(name, **more):
    recipe = load_recipe(find_recipe(name))
    return model_card(recipe, LADDER, GATE, {**COUNTS, **more}).replace("\n  ", " ")


def test_the_card_says_what_was_learnt_from():
    said = card("embedded/bespoke-stratos")
    assert "on 8 examples, made of 3 traces and 2 general answers (3 kept of 8), 3 epochs" in said
    assert "`<|begin_of_thought|>…<|end_of_thought|>`" in said
    assert "Practice" not in said
    practised = card("default", **{"05-on-policy": {"method": "aligned", "attempts": 1280}})
    assert "**Practice**: 1,280 attempts of its own, graded by the teacher (aligned)." in practised

"""Suites as data: what they hold, in which words they ask, and what is refused."""

import argparse
import json

import pytest

from pipeline.compare_recipes import add_arguments
from pipeline.recipe import DatasetOptions
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.tasks.gym import family_problems
from pipeline.tasks.judge import Judge
from pipeline.transfer_suites import (
    Style,
    Suite,
    Suites,
    load_suites,
    styled,
    suite_problems,
    suites_key,
)
from serve.errors import RecipeError
from serve.messages import Completion, Message

SYSTEM = Message(role="system", content="Think.")
QUESTION = Message(role="user", content="Solve for s: 7*s = 14")
SHOT = (Message(role="user", content="1?"), Message(role="assistant", content="Answer: 1"))


def test_the_built_in_suites_hold_what_they_say():
    suites, folder = load_suites("embedded")
    sizes = {s.name: len(suite_problems(s, folder, 1, set())) for s in suites.suite}
    assert sizes == {"harder": 80, "related": 120, "general": 40}
    assert len(suites.style) == 9
    trained = {f.name for f in load_recipe(find_recipe("default")).problems.families}
    asked = {s.name: {f.name for f in s.families} for s in suites.suite}
    assert asked["harder"] == trained
    assert not asked["related"] & trained


def test_what_a_run_knows_is_not_asked():
    suites, folder = load_suites("embedded")
    harder = suites.suite[0]
    first = suite_problems(harder, folder, 1, set())
    known = {p.question for p in first[:10]}
    again = suite_problems(harder, folder, 1, known)
    assert len(again) == 80
    assert not known & {p.question for p in again}


def test_the_benchmarks_name_their_data_sets():
    suites, _ = load_suites("benchmarks")
    named = {s.name: [(d.name, d.config, d.split) for d in s.datasets] for s in suites.suite}
    assert named == {
        "GSM8K": [("openai/gsm8k", "main", "test")],
        "MATH-500": [("HuggingFaceH4/MATH-500", None, "test")],
        "AIME 2024": [("HuggingFaceH4/aime_2024", None, "train")],
        "GPQA Diamond": [("Idavidrein/gpqa", "gpqa_diamond", "train")],
    }


def test_a_suite_of_a_data_set_asks_its_items_in_order_of_key(tmp_path):
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n + 1}"} for n in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    suite = Suite(name="mine", items=5, datasets=(DatasetOptions(name=str(tmp_path)),))
    problems = suite_problems(suite, tmp_path, 1, {"What is 3 + 1?"})
    assert len(problems) == 5
    assert [p.key for p in problems] == sorted(p.key for p in problems)


def test_a_suite_of_a_file_is_asked_whole_even_where_it_was_trained_on():
    """So that it is named as an overlap."""
    suites, folder = load_suites("embedded")
    general = suites.suite[2]
    known = {p.question for p in suite_problems(general, folder, 1, set())}
    assert len(suite_problems(general, folder, 1, known)) == 40


def test_few_shots_need_a_solved_problem():
    assert styled((SYSTEM, QUESTION), Style(name="s", shots=2), []) is None


def test_a_share_of_the_suites_asks_the_first_of_each():
    suites, folder = load_suites("embedded")
    fewer = suites.fewer(0.4)
    asked = {s.name: suite_problems(s, folder, 1, set()) for s in fewer.suite}
    assert {n: len(p) for n, p in asked.items()} == {"harder": 32, "related": 48, "general": 40}
    whole = {p.key for p in suite_problems(suites.suite[0], folder, 1, set())}
    assert {p.key for p in asked["harder"]} < whole
    assert (fewer.styles.items, fewer.samples.items, fewer.samples.k) == (12, 6, 32)
    assert suites.fewer(0.001).styles.items == 1
    assert suites.fewer(1.0) == suites


@pytest.mark.parametrize("share", ["0", "1.5", "nan", "half"])
def test_a_share_outside_nought_to_one_is_refused(share, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--suite-share", share])
    assert f"--suite-share: {share} is not above 0 and at most 1" in capsys.readouterr().err


def test_every_training_question_can_be_asked_in_german():
    suites, _ = load_suites("embedded")
    (german,) = [s for s in suites.style if s.name == "German"]
    for family in load_recipe(find_recipe("default")).problems.families:
        for problem in family_problems(family.name, family.options, 5, 40):
            messages = (SYSTEM, Message(role="user", content=problem.question))
            said = styled(messages, german, [])
            assert said is not None, problem.question
            words = {"the", "Find", "Solve", "value", "Give", "only", "that"}
            assert not words & set(said[-1].content.replace(":", " ").split()), said


@pytest.mark.parametrize(
    ("style", "asked"),
    [
        (Style(name="s", text="{question} Short."), ["Think.", "Solve for s: 7*s = 14 Short."]),
        (Style(name="s", lower=True), ["Think.", "solve for s: 7*s = 14"]),
        # Without any, a template may write one of its own.
        (Style(name="s", system=""), ["", "Solve for s: 7*s = 14"]),
        (Style(name="s", system="Help."), ["Help.", "Solve for s: 7*s = 14"]),
        (Style(name="s", shots=1), ["Think.", "1?", "Answer: 1", "Solve for s: 7*s = 14"]),
        (
            Style(name="s", text="{question} \\boxed{} {x}"),
            ["Think.", "Solve for s: 7*s = 14 \\boxed{} {x}"],
        ),
    ],
)
def test_a_style_says_the_same_otherwise(style, asked):
    said = styled((SYSTEM, QUESTION), style, [SHOT, SHOT])
    assert [m.content for m in said] == asked


def test_a_translation_that_does_not_apply_is_not_asked():
    assert styled((SYSTEM, QUESTION), Style(name="s", replace=(("Multiply", "Mal"),)), []) is None


@pytest.mark.parametrize(
    ("answer", "passed"),
    [("The capital of France is Paris.", True), ("paris", True), ("Parisian", False)],
)
def test_general_questions_look_for_the_reference_as_a_word(answer, passed):
    suites, folder = load_suites("embedded")
    (general,) = [s for s in suites.suite if s.name == "general"]
    (paris,) = [p for p in suite_problems(general, folder, 1, set()) if p.answer == "Paris"]
    said = Completion(text=answer, finish="stop", prompt_tokens=1, completion_tokens=3)
    with Judge() as judge:
        assert judge.verdict(paris, said).passed is passed


def test_faults_name_their_place(tmp_path):
    with pytest.raises(
        RecipeError, match="suites 'nowhere' are not there\nhint: built in: benchmarks, embedded"
    ):
        load_suites("nowhere")
    path = tmp_path / "mine.toml"
    path.write_text('[[style]]\nname = "x"\ntext = "no place"\n')
    with pytest.raises(RecipeError, match=r"mine.toml: style.0.text: String should match pattern"):
        load_suites(str(path))
    path.write_text('[[style]]\nname = "x"\n[[style]]\nname = "x"\n')
    with pytest.raises(RecipeError, match="two suites or styles of one name"):
        load_suites(str(path))
    path.write_text('[[suite]]\nname = "forced"\n')
    with pytest.raises(RecipeError, match="a suite cannot be called 'forced'"):
        load_suites(str(path))


def test_families_that_were_trained_on_are_not_asked_as_related():
    suites, folder = load_suites("embedded")
    related = next(s for s in suites.suite if s.name == "related")
    asked = suite_problems(related, folder, 1, set(), {"lcm", "gcd"})
    assert "lcm" not in {p.family for p in asked}
    assert len(asked) == related.items * (len(related.families) - 1)


def test_what_is_asked_changes_with_the_file_of_a_suite(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"question": "1?", "answer": "1"}\n')
    suites = Suites(suite=(Suite(name="own", file="own.jsonl"),))
    before = suites_key((suites, tmp_path))
    assert suites_key((suites, tmp_path)) == before
    (tmp_path / "own.jsonl").write_text('{"question": "2?", "answer": "2"}\n')
    assert suites_key((suites, tmp_path)) != before

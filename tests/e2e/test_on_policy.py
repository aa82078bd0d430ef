"""Practice with the real student and the real teacher: every method, kills, and the same bytes."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline import on_policy
from pipeline.attempts import Attempt
from pipeline.grading import Grading
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Problem
from pipeline.refiner import Refiner
from pipeline.run import Context
from pipeline.store import read_records, write_records
from pipeline.tasks.gym import family_problems
from serve.errors import DataError, EngineError, TrainingDiverged

pytestmark = pytest.mark.slow
RECIPE = load_recipe(find_recipe("smoke"))
CONTEXT = Context(seed=5, progress=Progress())
OPTIONS = OnPolicyOptions(
    method="aligned",
    blocks=2,
    block_attempts=8,
    max_tokens=48,
    passes=1,
    batch_lessons=4,
    replay=4,
    watch_problems=2,
    watch_samples=2,
    watch_blocks=1,
    checkpoint_blocks=8,
)
FILES = (
    "model.safetensors",
    "attempts.jsonl",
    "own_answers.jsonl",
    "blocks.jsonl",
    "watch.json",
    "examples.jsonl",
)


@pytest.fixture(scope="module")
def inputs(smoke, tmp_path_factory):
    """The smoke run's student, and problems it never met."""
    folder = tmp_path_factory.mktemp("practice") / "01-problems"
    folder.mkdir()
    family = RECIPE.problems.families[0]
    problems: list[Problem] = list(family_problems(family.name, family.options, 77, 12))
    write_records(folder / "practice.jsonl", sorted(problems, key=lambda p: p.key))
    return {"01-problems": folder, "04-sft": smoke.root / "04-sft"}


def practise(inputs, out, pass_at_k_lost=2.0, entropy_left=0.0, **changes):
    """Four answers to held-out problems say nothing: the watch looks, and never interferes."""
    out.mkdir(exist_ok=True)
    options = OPTIONS.model_copy(update=changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.collapse_watch.PASS_AT_K_LOST", pass_at_k_lost)
        patch.setattr("pipeline.collapse_watch.ENTROPY_LEFT", entropy_left)
        return on_policy.run((RECIPE.teacher, RECIPE.student, options), inputs, out, CONTEXT)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "blocks.jsonl").read_text().splitlines()]


def hashes(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("aligned")
    return out, practise(inputs, out)


def test_a_block_is_attempts_grades_and_updates(inputs, finished):
    out, counts = finished
    rows = rows_of(out)
    attempts = list(read_records(out / "attempts.jsonl", Attempt))
    assert [row["block"] for row in rows] == [0, 1]
    assert [row["attempts"] for row in rows] == [8, 8]
    assert counts["method"] == "aligned"
    assert counts["attempts"] == len(attempts) == 16
    assert counts["attempt_tokens"] == sum(a.completion.completion_tokens for a in attempts)
    right = sum(a.verdict.passed is True and a.completion.finish == "stop" for a in attempts)
    wrong = sum(a.verdict.passed is False for a in attempts)
    assert 0 < counts["lessons"] - right <= wrong
    assert counts["updates"] == sum(row["updates"] for row in rows) > 0
    assert counts["skipped_updates"] == 0
    assert counts["teacher_tokens"] > 0
    held_out = {p.key for p in read_records(inputs["01-problems"] / "practice.jsonl", Problem)}
    assert len(held_out) == 12
    looks = json.loads((out / "watch.json").read_text())
    assert [look["blocks"] for look in looks] == [0.0, 1.0, 2.0]
    assert all(0 < look["entropy_nats"] < 12 for look in looks)
    assert not (out / "scratch").exists()


def test_what_broken_updates_left_is_kept_and_practised_again(inputs, finished, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.update.backward", lambda *_: float("nan"))
        with pytest.raises(TrainingDiverged, match="aligned/last-good") as raised:
            practise(inputs, tmp_path / "aligned")
    assert raised.value.exit_code == 6
    kept = load_file(tmp_path / "aligned" / "last-good" / "model.safetensors")
    before = load_file(inputs["04-sft"] / "model.safetensors")
    assert all(torch.equal(kept[name], before[name]) for name in before)
    practise(inputs, tmp_path / "aligned")
    assert not (tmp_path / "aligned" / "last-good").exists()
    assert hashes(tmp_path / "aligned") == hashes(finished[0])


def test_the_student_has_moved(inputs, finished):
    before = hashlib.sha256((inputs["04-sft"] / "model.safetensors").read_bytes()).hexdigest()
    assert hashes(finished[0])["model.safetensors"] != before


def test_a_teacher_killed_and_started_again_changes_nothing(
    inputs, finished, tmp_path, monkeypatch
):
    asked = []
    original = Grading.grades

    def dying(self, attempts):
        asked.append(len(attempts))
        if len(asked) == 2:
            self.engine._child.kill()
        return original(self, attempts)

    monkeypatch.setattr(Grading, "grades", dying)
    with pytest.raises(EngineError, match="ended with signal SIGKILL") as raised:
        practise(inputs, tmp_path / "out")
    assert raised.value.exit_code == 5
    monkeypatch.undo()
    again = practise(inputs, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(finished[0])
    assert again["teacher_tokens"] == finished[1]["teacher_tokens"]


def test_a_teacher_killed_after_it_graded_goes_on_with_the_same_words(
    inputs, tmp_path, monkeypatch
):
    """It goes on from what it read when it graded, and what it read is gone."""
    told = {"blocks": 1, "continuations": True}
    whole = practise(inputs, tmp_path / "whole", **told)
    original = Grading.continuations

    def dying(self, requests, group=()):
        assert len(requests) > 0
        self.engine._child.kill()
        return original(self, requests, group)

    monkeypatch.setattr(Grading, "continuations", dying)
    with pytest.raises(EngineError, match="ended with signal SIGKILL"):
        practise(inputs, tmp_path / "out", **told)
    monkeypatch.undo()
    again = practise(inputs, tmp_path / "out", **told)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert again["teacher_tokens"] == whole["teacher_tokens"]


def test_going_on_from_a_state_on_disk_changes_nothing(inputs, finished, tmp_path, monkeypatch):
    original = Refiner._attempts

    def interrupted(self, problems, block):
        if block == 1:
            raise KeyboardInterrupt
        return original(self, problems, block)

    monkeypatch.setattr(Refiner, "_attempts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        practise(inputs, tmp_path / "out", checkpoint_blocks=1)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "out" / "scratch").glob("state-*")] == ["state-000001"]
    practise(inputs, tmp_path / "out", checkpoint_blocks=1)
    assert hashes(tmp_path / "out") == hashes(finished[0])


def test_what_other_settings_left_unfinished_is_forgotten(inputs, finished, tmp_path, monkeypatch):
    def interrupted(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Refiner, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        practise(inputs, tmp_path / "out", temperature=1.5)
    monkeypatch.undo()
    assert (tmp_path / "out" / "scratch" / "grades.jsonl").exists()
    practise(inputs, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(finished[0])


@pytest.mark.parametrize(
    ("method", "continuations"), [("span", False), ("recover", False), ("aligned", True)]
)
def test_other_ways_learn_from_the_same_attempts(inputs, finished, tmp_path, method, continuations):
    changes = {"method": method, "continuations": continuations}
    counts = practise(inputs, tmp_path / "out", blocks=1, **changes)
    first = [
        a.model_dump() for a in read_records(finished[0] / "attempts.jsonl", Attempt) if not a.block
    ]
    mine = [a.model_dump() for a in read_records(tmp_path / "out" / "attempts.jsonl", Attempt)]
    assert mine == first
    assert counts["method"] == method
    assert counts["updates"] > 0
    if method == "span":
        assert counts["lessons"] > 0
    if method == "recover":  # the teacher's ways on, beside right attempts as they stand
        read = read_records(tmp_path / "out" / "attempts.jsonl", Attempt)
        right = [a for a in read if a.verdict.passed and a.completion.finish == "stop"]
        assert counts["lessons"] > len(right)
    if continuations:
        assert rows_of(tmp_path / "out")[0]["places"] > rows_of(finished[0])[0]["places"]


def test_right_attempts_are_examples_unless_it_is_said_otherwise(inputs, finished, tmp_path):
    practise(inputs, tmp_path / "out", blocks=1, right_as_examples=False)
    (row,), first = rows_of(tmp_path / "out"), rows_of(finished[0])[0]
    attempts = list(read_records(tmp_path / "out" / "attempts.jsonl", Attempt))
    right = [a for a in attempts if a.verdict.passed and a.completion.finish == "stop"]
    assert row["lessons"] == first["lessons"] - len(right)
    assert row["places"] == first["places"] - sum(len(a.completion.ids) + 1 for a in right)


def test_the_student_ends_half_way_between_sft_and_the_last_update(inputs, finished, tmp_path):
    practise(inputs, tmp_path / "out", merge=1.0)
    attempts = "attempts.jsonl"
    assert hashes(tmp_path / "out")[attempts] == hashes(finished[0])[attempts]
    folders = (inputs["04-sft"], tmp_path / "out", finished[0])
    before, last, merged = (load_file(folder / "model.safetensors") for folder in folders)
    for name, weights in merged.items():
        half = (before[name].float() + last[name].float()) / 2
        # The files are rounded to bfloat16, eight bits, each by itself.
        torch.testing.assert_close(weights.float(), half, rtol=2**-7, atol=1e-6)


def test_a_collapse_ends_practice_with_the_best_student_seen(inputs, tmp_path):
    out = tmp_path / "out"
    counts = practise(inputs, out, pass_at_k_lost=-1.0, entropy_left=1e9, blocks=3)
    assert counts["blocks"] == 1
    looks = json.loads((out / "watch.json").read_text())
    moved = (
        hashes(out)["model.safetensors"]
        != hashlib.sha256((inputs["04-sft"] / "model.safetensors").read_bytes()).hexdigest()
    )
    assert moved == (looks[1]["pass_at_1"] >= looks[0]["pass_at_1"])


def test_too_few_problems_are_said_so(inputs, tmp_path):
    with pytest.raises(DataError) as raised:
        practise(inputs, tmp_path / "out", watch_problems=12)
    assert str(raised.value) == (
        "12 practice problems, 12 of them held out\nhint: raise problems.practice_per_family"
    )


def test_exact_is_refused_for_a_teacher_in_llama_cpp(inputs, tmp_path):
    with pytest.raises(DataError) as raised:
        practise(inputs, tmp_path / "out", method="exact")
    assert str(raised.value) == (
        "on_policy.method exact cannot work: teacher.engine is llama.cpp, exact needs transformers"
        "\nhint: aligned can"
    )

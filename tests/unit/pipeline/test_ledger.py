"""Costs and gains of a made-up run: every figure follows from the records."""

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline import ledger as ledger_module
from pipeline.compare import larger_recipe, spent
from pipeline.ladder import Judged
from pipeline.ledger import COMPARED, compared, ledger, multiplied_weights
from pipeline.page_practice import compared_text, ledger_cells
from pipeline.practice_gain import practice_gain
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Problem, Verdict
from pipeline.store import write_records
from serve.errors import DataError
from serve.messages import Completion

RECIPE = load_recipe(find_recipe("default"))
STUDENT, TEACHER = 1000, 50_000


def judged(rung, item, passed):
    return Judged(
        rung=rung,
        item=f"i{item:03d}",
        family="f",
        sample=0,
        completion=Completion(text="", finish="stop", prompt_tokens=1, completion_tokens=1),
        verdict=Verdict(passed=passed, reason="wrong", extracted=None, verifier="none"),
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """100 items: base 10 right, SFT 40, after practice 50 with none lost."""
    monkeypatch.setattr(ledger_module, "teacher_weights", lambda recipe: TEACHER)
    counts = {
        "02-traces": ({"completion_tokens": 2000}, 60.0, 5.0),
        "03-curated": ({}, 1.0, None),
        "04-examples": ({}, 0.0, 0.0),
        "04-sft": ({"trained_tokens": 3000}, 120.0, 7.0),
        "05-on-policy": (
            {
                "method": "aligned",
                "student_tokens": 400,
                "attempt_tokens": 500,
                "teacher_tokens": 600,
            },
            90.0,
            None,
        ),
    }
    for name, (found, took_s, joules) in counts.items():
        folder = tmp_path / name
        folder.mkdir()
        manifest = {"counts": found, "took_s": took_s, "device": "two cores", "energy_j": joules}
        (folder / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": name}))
    weights = np.zeros((STUDENT // 10, 10), dtype=np.float32)
    save_file({"model.embed_tokens.weight": weights}, tmp_path / "04-sft" / "model.safetensors")
    (tmp_path / "08-evaluate").mkdir()
    (tmp_path / "08-evaluate" / "manifest.json").write_text('{"counts": {}, "took_s": 1}')
    answers = [
        judged(rung, item, item < right)
        for rung, right in (("base student", 10), ("SFT student", 40), ("on-policy student", 50))
        for item in range(100)
    ]
    write_records(tmp_path / "08-evaluate" / "answers.jsonl", answers)
    (tmp_path / "09-gate").mkdir()
    (tmp_path / "09-gate" / "manifest.json").write_text('{"counts": {}, "took_s": 1}')
    more = [
        judged(rung, item, item < 100 + right)
        for rung, right in (("SFT student", 10), ("on-policy student", 13))
        for item in range(100, 130)
    ]
    gate = {"practice": practice_gain([*answers, *more], 0.95)}
    (tmp_path / "09-gate" / "gate.json").write_text(json.dumps(gate))
    (tmp_path / "01-problems").mkdir()
    problems = [Problem(question=f"q{n}", answer="1", family="f") for n in range(480)]
    write_records(tmp_path / "01-problems" / "train.jsonl", problems)
    return tmp_path


def test_each_step_has_its_costs_and_its_gain(run):
    inputs = {p.name: p for p in run.iterdir() if (p / "manifest.json").exists()}
    first, second = ledger(RECIPE, inputs)
    assert first["operations"] == 6 * STUDENT * 3000 + 2 * TEACHER * 2000
    assert (first["took_s"], first["energy_j"]) == (180.0, 12.0)
    assert first["gained"]["difference"] == pytest.approx(0.3)
    assert second["step"] == "practice (aligned)"
    expected = 6 * STUDENT * 400 + 2 * STUDENT * 500 + 2 * TEACHER * 600
    assert second["operations"] == expected
    assert second["student_tokens"] == 900
    assert second["energy_j"] is None
    # On the evaluation's items and on those that the gate asked besides.
    assert second["gained"]["difference"] == pytest.approx(0.1)
    assert second["gained"]["interval"][0] > 0
    assert second["points_per_minute"] == pytest.approx(10 / 1.5)
    assert second["points_per_1e15"] == pytest.approx(10 / (expected / 1e15))
    head, cells = ledger_cells([first, second], brief=True)
    assert len(head) == len(cells[0]) == 8
    assert cells[1][4].startswith("+10.0 [+")
    assert [row[5] for row in cells] == ["100", "130"]


def test_where_a_server_does_not_say_its_size_operations_are_not_known(run, monkeypatch):
    monkeypatch.setattr(ledger_module, "teacher_weights", lambda recipe: None)
    inputs = {p.name: p for p in run.iterdir() if (p / "manifest.json").exists()}
    rows = ledger(RECIPE, inputs)
    assert [(row["operations"], row["points_per_1e15"]) for row in rows] == [(None, None)] * 2
    head, cells = ledger_cells(rows)
    assert [row[head.index("10^15 operations")] for row in cells] == ["not known"] * 2


def test_all_that_was_asked_of_the_teacher_counts(run):
    inputs = {p.name: p for p in run.iterdir() if (p / "manifest.json").exists()}
    for name, tokens, took_s in (("02-general", 300, 6.0), ("03-references", 40, 4.0)):
        (run / name).mkdir()
        manifest = {"counts": {"completion_tokens": tokens}, "took_s": took_s}
        (run / name / "manifest.json").write_text(json.dumps(manifest))
        inputs[name] = run / name
    first, _ = ledger(RECIPE, inputs)
    assert (first["teacher_tokens"], first["took_s"]) == (2340, 190.0)


def test_equal_compute_is_the_practices_time_in_problems(run):
    larger, seconds, before = larger_recipe(RECIPE, run, "took_s")
    # 180 s for 480 problems; 90 s are 240 of them, in four families 60 each.
    assert (seconds, before) == (90.0, 480)
    assert larger.problems.train_per_family == RECIPE.problems.train_per_family + 60
    assert larger.on_policy.method == "none"


def test_general_prompts_do_not_make_problems_dearer(run):
    (run / "02-general").mkdir()
    manifest = {"counts": {"completion_tokens": 2000}, "took_s": 180.0}
    (run / "02-general" / "manifest.json").write_text(json.dumps(manifest))
    for measure, more in (("took_s", 60), ("operations", 35)):
        larger, _, _ = larger_recipe(RECIPE, run, measure)
        assert larger.problems.train_per_family == RECIPE.problems.train_per_family + more


def test_equal_compute_may_be_counted_instead_of_timed(run, monkeypatch):
    larger, operations, _ = larger_recipe(RECIPE, run, "operations")
    # 218e6 for 480 problems; 63.4e6 are 139.6 of them, in four families 35 each.
    assert operations == 6 * STUDENT * 400 + 2 * STUDENT * 500 + 2 * TEACHER * 600
    assert larger.problems.train_per_family == RECIPE.problems.train_per_family + 35
    monkeypatch.setattr(ledger_module, "teacher_weights", lambda recipe: None)
    with pytest.raises(DataError, match="does not say its size") as caught:
        larger_recipe(RECIPE, run, "operations")
    assert caught.value.hint == "--equal-compute seconds"


def test_a_rival_pays_for_what_it_added(run, tmp_path):
    rival = tmp_path / "compare" / "more-sft"
    for name in ("02-traces", "04-examples", "04-sft"):
        shutil.copytree(run / name, rival / name)
    for name, count, took_s in (("02-traces", 2600, 40.0), ("04-sft", 4500, 185.0)):
        path = rival / name / "manifest.json"
        manifest = json.loads(path.read_text())
        counts = dict.fromkeys(manifest["counts"], count)
        path.write_text(json.dumps(manifest | {"took_s": took_s, "counts": counts}))
    # The run's traces were there already: their 60 s are in neither.
    assert spent(RECIPE, rival, run, "took_s") == 40.0 + 185.0 - 120.0
    more = 6 * STUDENT * (4500 - 3000) + 2 * TEACHER * (2600 - 2000)
    assert spent(RECIPE, rival, run, "operations") == more


def test_a_comparison_is_shown_while_it_is_of_the_same_practice(run):
    assert compared(run) is None
    assert "was not tried" in compared_text(None)
    found = {
        "fingerprint": "05-on-policy",
        "measure": "took_s",
        "budget": 90.0,
        "more_problems": 240,
        "spent": 93.0,
        "items": 300,
        "more_sft": 0.45,
        "on_policy": 0.5,
        "difference": 0.05,
        "interval": [-0.01, 0.11],
        "p_value": 0.1,
    }
    (run / COMPARED).write_text(json.dumps(found))
    text = compared_text(compared(run))
    assert "is not decided by these items" in text
    assert "The same 1.5 minutes spent on 240 more problems" in text
    assert "(1.6 minutes were needed)" in text
    counted = found | {"measure": "operations", "budget": 1.6e14, "spent": 1.52e14}
    assert "The same 0.160 x 10^15 operations spent on 240" in compared_text(counted)
    better = found | {"interval": [0.01, 0.09]}
    assert "Practice beats it" in compared_text(better)
    worse = found | {"interval": [-0.09, -0.01]}
    assert "More traces beat practice" in compared_text(worse)
    (run / COMPARED).write_text(json.dumps(found | {"fingerprint": "another"}))
    assert compared(run) is None
    # As written by earlier releases.
    added = {"measure": "took_s", "budget": 90.0, "spent": 93.0}
    old = {name: value for name, value in found.items() if name not in added}
    (run / COMPARED).write_text(json.dumps(old | {"seconds": 90.0, "spent_s": 93.0}))
    assert compared(run) == old | added | {"seconds": 90.0, "spent_s": 93.0}


def test_an_embedding_that_is_only_looked_up_is_not_multiplied(tmp_path):
    table, head = np.zeros((30, 4), np.float32), np.zeros((30, 4), np.float32)
    layer = np.zeros((4, 5), np.float32)
    named = {"model.embed_tokens.weight": table, "model.layers.0.w.weight": layer}
    save_file(named, tmp_path / "model.safetensors")
    assert multiplied_weights(tmp_path) == 140
    save_file(named | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    assert multiplied_weights(tmp_path) == 140
    assert math.prod(head.shape) == 120

"""Methods whose answers are known, side by side; and answers that two recipes share."""

import pytest

from pipeline.answer_pool import grown, pooled
from pipeline.compare_recipes import built_in
from pipeline.methods_table import Method, rows, sentences, table
from pipeline.recipe_files import FOLDER, find_recipe, load_recipe


def method(name, right, items=100):
    accuracy = right / items
    return Method(
        name=name,
        fingerprint="f",
        right={f"i{n}": n < right for n in range(items)},
        suites={"fresh": {"items": items, "accuracy": accuracy, "interval": [0.1, 0.9]}},
        rung={"over_styles": {"mean": 0.25, "worst": 0.125}, "forced": {}},
        answer_tokens=41.4,
        supervised_tokens=12345,
        teacher_tokens=999,
        minutes=3.25,
    )


METHODS = [method("plain", 40), method("r1", 60), method("s1", 20), method("gkd", 42)]


def test_every_method_stands_beside_plain():
    head, *below = rows(METHODS)
    found = {cells[0]: dict(zip(head, cells, strict=True)) for cells in below}
    assert found["plain"]["against plain"] == ""
    assert found["r1"]["fresh"] == "60.0 [10, 90]"
    assert found["r1"]["against plain"].startswith("+20.0 [+")
    assert found["s1"]["against plain"].startswith("-20.0 [-")
    assert found["gkd"]["styles mean (worst)"] == "25.0 (12.5)"
    assert found["gkd"]["supervised tokens"] == "12,345"
    assert table(METHODS).splitlines()[0].startswith("| recipe | fresh | against plain |")


def test_a_column_stands_for_every_suite_that_was_asked():
    cell = {"items": 4, "accuracy": 0.5, "interval": [0.15, 0.85]}
    asked = METHODS[1].model_copy(update={"suites": {**METHODS[1].suites, "GSM8K": cell}})
    head, plain, r1 = rows([METHODS[0], asked])
    assert head[2:5] == ["against plain", "GSM8K", "styles mean (worst)"]
    assert (plain[3], r1[3]) == ("", "50.0 [15, 85]")


def test_only_what_the_interval_allows_is_said():
    assert sentences(METHODS) == (
        "better than plain on fresh items: r1; worse than plain on fresh items: s1; "
        "not told apart from plain by 100 items: gkd."
    )
    assert sentences(METHODS[1:]) == ""
    assert sentences([method("base student", 2), *METHODS]) == sentences(METHODS)


def test_what_one_of_many_shows_by_luck_is_not_said():
    """5 points more with p 0.03 is something of one recipe, and nothing of one in five."""
    lucky = method("r1", 46)
    assert sentences([METHODS[0], lucky]) == "better than plain on fresh items: r1."
    others = [method(name, 40) for name in ("gkd", "s1", "qwen3", "openthoughts")]
    assert sentences([METHODS[0], lucky, *others]) == (
        "not told apart from plain by 100 items: r1, gkd, s1, qwen3, openthoughts."
    )


def test_answers_are_pooled_and_none_is_lost(tmp_path):
    own = tmp_path / "run" / "02-traces" / "scratch" / "answers.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text("b\n")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "02-traces.jsonl").write_text("a\nb\n")
    with pooled(tmp_path / "pool", tmp_path / "run"):
        assert own.read_text() == "b\na\n"
        with own.open("a") as log:
            log.write("c\n")
    assert (tmp_path / "pool" / "02-traces.jsonl").read_text() == "a\nb\nc\n"
    grown(tmp_path / "nowhere", own)
    assert own.read_text() == "b\na\nc\n"


def test_a_line_that_a_kill_cut_is_not_made_a_whole_one(tmp_path):
    (tmp_path / "pool").write_text("a\nb\ncu")
    (tmp_path / "own").write_text("d\ncu")
    grown(tmp_path / "pool", tmp_path / "own")
    assert (tmp_path / "own").read_text() == "d\na\nb\n"


@pytest.mark.parametrize("name", built_in())
def test_the_embedded_recipes_differ_in_what_they_are_named_for(name):
    recipe = load_recipe(find_recipe(f"embedded/{name}"))
    changed = {
        "style": recipe.supervise.view == "style",
        "plain": recipe.traces.samples == 1 and recipe.supervise.view == "full",
        "step-by-step": recipe.supervise.view == "multitask",
        "r1": recipe.traces.samples == 4 and recipe.general.wanted,
        "openthoughts": recipe.curate.keep == "answered" and recipe.traces.samples == 4,
        "bespoke-stratos": recipe.student.tags == "thought-solution",
        "s1": recipe.curate.select == "s1" and recipe.evaluate.waits == 1,
        "qwen3": (recipe.on_policy.preset, recipe.on_policy.beta) == ("qwen3", 1.0),
        "gkd": (recipe.on_policy.preset, recipe.on_policy.beta) == ("gkd", 0.5),
    }
    assert changed[name]
    assert recipe.run.name == name


def test_every_method_has_a_published_twin():
    names = {p.stem for p in (FOLDER / "published").glob("*.toml")} - {"base"}
    assert names == set(built_in()) - {"plain", "style"}
    for name in names:
        recipe = load_recipe(find_recipe(f"published/{name}"))
        twin = load_recipe(find_recipe(f"embedded/{name}"))
        assert recipe.supervise.view == twin.supervise.view
        assert recipe.curate.keep == twin.curate.keep
        assert recipe.curate.select == twin.curate.select
        assert recipe.on_policy.preset == twin.on_policy.preset
        assert recipe.general.wanted == twin.general.wanted
        assert recipe.student.tags == twin.student.tags
        assert recipe.evaluate.max_tokens == 16384

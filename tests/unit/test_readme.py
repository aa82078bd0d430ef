"""Recipes in the README are recipes."""

import re
from pathlib import Path

import pytest

from pipeline.recipe_files import load_recipe

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def test_a_recipe_of_one_s_own_loads_as_it_stands(tmp_path):
    (tmp_path / "mine.toml").write_text(BLOCKS[0], encoding="utf-8")
    recipe = load_recipe(tmp_path / "mine.toml")
    assert recipe.run.name == "mine"
    assert (recipe.teacher.engine, recipe.teacher.sha256, recipe.teacher.examples) == (
        "http",
        None,
        (),
    )
    assert (recipe.student.sha256, recipe.on_policy.method) == (None, "auto")


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_every_other_part_of_a_recipe_goes_over_the_built_in_one(block, tmp_path):
    (tmp_path / "part.toml").write_text('extends = "default"\n' + block, encoding="utf-8")
    assert load_recipe(tmp_path / "part.toml")

import pytest

from pipeline.recipe_files import find_recipe, load_recipe
from serve.errors import RecipeError

MINIMAL = """
[problems]
families = [{ name = "gcd" }]
[teacher]
model = "path:t.gguf"
system = "s"
[student]
model = "path:s"
system = "s"
"""


def load(tmp_path, text, *overrides):
    path = tmp_path / "r.toml"
    path.write_text(text)
    return load_recipe(path, overrides)


@pytest.mark.parametrize("name", ["default", "smoke"])
def test_the_built_in_recipes_load(name):
    recipe = load_recipe(find_recipe(name))
    assert recipe.run.name == name
    assert [f.name for f in recipe.problems.families] == [
        "chain_sum",
        "products",
        "simple_equations",
        "gcd",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "[sft]\nepoch = 3", "r.toml: unknown key sft.epoch"),
        (MINIMAL.replace('model = "path:t.gguf"', ""), "r.toml: missing key teacher.model"),
        (MINIMAL + "[sft]\nepochs = 0", "sft.epochs = 0: Input should be greater than"),
        ("[teacher", "cannot read recipe r.toml"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path, text, message):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_field_can_be_set_from_the_command_line(tmp_path):
    recipe = load(tmp_path, MINIMAL, "sft.epochs=7", "run.name=other")
    assert (recipe.sft.epochs, recipe.run.name) == (7, "other")


def test_an_unknown_recipe_names_the_built_in_ones():
    with pytest.raises(RecipeError, match="recipe 'nope' is not there") as caught:
        find_recipe("nope")
    assert caught.value.hint == (
        "built in: cluster, default, gpu-h100, gpu-small, smoke, embedded/…, published/…; "
        "or give a path"
    )


def test_a_recipe_extends_another_key_by_key(tmp_path):
    (tmp_path / "base.toml").write_text(
        MINIMAL + "[run]\nname = 'base'\nseed = 7\n[sft]\nepochs = 9"
    )
    child = "extends = 'base.toml'\n[sft]\nlearning_rate = 1e-5\n[teacher]\nsystem = 'other'"
    recipe = load(tmp_path, child)
    assert (recipe.sft.epochs, recipe.sft.learning_rate) == (9, 1e-5)
    assert (recipe.teacher.model, recipe.teacher.system) == ("path:t.gguf", "other")
    # Two recipes never share a run folder by accident.
    assert (recipe.run.name, recipe.run.seed) == ("r", 7)


def test_a_section_can_start_anew(tmp_path):
    (tmp_path / "base.toml").write_text(MINIMAL + "[sft]\nepochs = 9\nbatch_examples = 3")
    recipe = load(tmp_path, "extends = 'base.toml'\n[sft]\nanew = true\nepochs = 2")
    assert (recipe.sft.epochs, recipe.sft.batch_examples) == (2, 16)


def test_a_recipe_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "other.toml").write_text("extends = 'r.toml'")
    with pytest.raises(RecipeError, match=r"^recipe r\.toml extends itself$"):
        load(tmp_path, "extends = 'other.toml'")


def test_what_it_extends_has_to_be_there(tmp_path):
    with pytest.raises(RecipeError, match=r"^recipe 'nowhere' is not there"):
        load(tmp_path, "extends = 'nowhere'")
    with pytest.raises(RecipeError, match=r"^r\.toml: extends = 3 is not the name of a recipe$"):
        load(tmp_path, "extends = 3")


def test_how_vllm_is_spread_is_said_only_where_it_was_asked_for(tmp_path):
    plain = load(tmp_path, MINIMAL).teacher.model_dump(mode="json")
    assert not {"tensor_parallel", "data_parallel", "memory_share"} & plain.keys()
    lines = (
        'teacher.engine="vllm"',
        "teacher.tensor_parallel=4",
        "teacher.data_parallel=2",
        "teacher.memory_share=0.8",
    )
    spread = load(tmp_path, MINIMAL, *lines).teacher
    found = spread.model_dump(mode="json")
    assert {name: found[name] for name in found.keys() - plain.keys()} == {
        "tensor_parallel": 4,
        "data_parallel": 2,
        "memory_share": 0.8,
    }
    with pytest.raises(RecipeError, match=r"data_parallel need teacher\.engine vllm, not llama"):
        load(tmp_path, MINIMAL, "teacher.data_parallel=2")


@pytest.mark.parametrize("view", ["answer", "multitask"])
def test_practice_does_not_teach_reasoning_to_who_is_asked_for_none(view):
    with pytest.raises(RecipeError, match=f"which supervise.view {view} does not ask for"):
        load_recipe(find_recipe("default"), (f'supervise.view="{view}"',))


def test_a_preset_that_is_named_beside_the_command_goes_before_the_file():
    chosen = load_recipe(find_recipe("default"), ("on_policy.preset='gkd'",)).on_policy
    assert (chosen.method, chosen.passes, chosen.temperature, chosen.merge) == ("auto", 1, 1.0, 1.0)
    assert chosen.block_attempts == 128  # the preset says nothing of it
    wishes = ("on_policy.passes=3", "on_policy.preset='gkd'")
    chosen = load_recipe(find_recipe("default"), wishes).on_policy
    assert (chosen.method, chosen.passes) == ("auto", 3)


def test_a_gguf_type_that_nobody_knows_is_refused_with_the_recipe():
    with pytest.raises(RecipeError, match="unknown GGUF type 'Q4_K'; there are BF16, F16"):
        load_recipe(find_recipe("default"), ('gguf.types=["F16", "Q4_K"]',))

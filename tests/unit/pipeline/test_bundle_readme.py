"""What a bundle says of itself."""

import pytest

from pipeline.bundle import _readme
from pipeline.recipe_files import find_recipe, load_recipe

GATE = {"margin_points": 3.0, "reference": "SFT student", "rows": []}


@pytest.mark.parametrize(
    ("wishes", "says", "not_says"),
    [
        ((), "It thinks inside `<think>…</think>`, then writes `Answer: …`.", "It writes"),
        (
            ('supervise.view="answer"', 'on_policy.method="none"'),
            "It writes `Answer: …`.",
            "thinks",
        ),
    ],
)
def test_it_says_how_the_student_answers(wishes, says, not_says):
    text = _readme(load_recipe(find_recipe("default"), wishes), GATE, ["student"], True)
    assert f"Holds student. {says}" in text
    assert not_says not in text
    assert "`ollama create default -f Modelfile` takes it into Ollama. `sha256sum -c" in text


def test_ollama_is_offered_what_there_is():
    recipe = load_recipe(find_recipe("default"))
    assert "ollama" not in _readme(recipe, GATE, ["student ONNX int8"], False)
    nothing = _readme(recipe, GATE, [], False)
    assert "Holds no model: nothing passed the gate." in nothing
    assert "python -m serve" not in nothing

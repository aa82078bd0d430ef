"""The verdict beside an answer in the chat is the pipeline's own."""

import pytest

from pipeline.fresh_problems import _reply
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Problem
from pipeline.tasks.judge import Judge


@pytest.mark.parametrize(("finish", "passed"), [("stop", True), ("length", False)])
def test_an_answer_that_was_cut_is_wrong(finish, passed):
    problem = Problem(question="2 + 2 =", answer="4", family="f", scorer="math")
    asked = {
        "problem": problem.model_dump(),
        "text": "<think>\n2 + 2 = 4\n</think>\nAnswer: 4",
        "finish": finish,
    }
    with Judge() as judge:
        assert _reply(asked, load_recipe(find_recipe("smoke")), set(), judge)["passed"] is passed

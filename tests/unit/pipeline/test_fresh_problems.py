"""The verdict beside an answer in the chat is the pipeline's own."""

import json

import pytest

from pipeline.fresh_problems import _reply, fresh_problem
from pipeline.recipe import ProblemsOptions
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Problem
from pipeline.tasks.judge import Judge
from serve.errors import DataError

NOBODY = (set(), set())


@pytest.mark.parametrize(("finish", "passed"), [("stop", True), ("length", False)])
def test_an_answer_that_was_cut_is_wrong(finish, passed):
    problem = Problem(question="2 + 2 =", answer="4", family="f", scorer="math")
    asked = {
        "problem": problem.model_dump(),
        "text": "<think>\n2 + 2 = 4\n</think>\nAnswer: 4",
        "finish": finish,
    }
    with Judge() as judge:
        assert _reply(asked, load_recipe(find_recipe("smoke")), NOBODY, judge)["passed"] is passed


def test_of_a_file_only_what_nobody_was_trained_on_is_drawn(tmp_path):
    mine = tmp_path / "mine.jsonl"
    questions = [f"{n} + 1 =" for n in range(6)]
    mine.write_text("".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in questions))
    options = ProblemsOptions(files=(str(mine),))
    seen, learnt = set(questions), set(questions[:4])
    drawn = {fresh_problem(options, seen, learnt, seed).question for seed in range(20)}
    assert drawn == set(questions[4:])
    with pytest.raises(DataError, match="all problems of the run's files were trained on"):
        fresh_problem(options, seen, seen, 1)

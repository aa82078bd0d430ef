import json
import logging
import re

import pytest

from pipeline import problems
from pipeline.progress import Progress
from pipeline.recipe import DatasetOptions, FamilyOptions, ProblemsOptions
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.store import read_records
from pipeline.tasks.files import jsonl_problems
from serve.errors import DataError, RecipeError

CONTEXT = Context(seed=1, progress=Progress(), log=logging.getLogger("test"))


def make(tmp_path, **options):
    counts = problems.run(ProblemsOptions(**options), {}, tmp_path, CONTEXT)
    train, evaluation = (
        list(read_records(tmp_path / f"{side}.jsonl", Problem)) for side in ("train", "eval")
    )
    return counts, train, evaluation


def families(*names):
    return [FamilyOptions(name=n) for n in names]


def test_sides_never_share_a_question_and_repeat_exactly(tmp_path):
    options = {
        "families": families("gcd", "chain_sum"),
        "train_per_family": 40,
        "eval_per_family": 20,
    }
    counts, train, evaluation = make(tmp_path / "a", **options)
    assert counts["train"] == {"chain_sum": 40, "gcd": 40}
    assert counts["evaluation"] == {"chain_sum": 20, "gcd": 20}
    assert not {p.question for p in train} & {p.question for p in evaluation}
    assert [p.key for p in train] == sorted({p.key for p in train})
    make(tmp_path / "b", **options)
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_unknown_family_suggests_the_near_one(tmp_path):
    with pytest.raises(RecipeError) as caught:
        make(tmp_path, families=families("gdc"))
    assert str(caught.value).startswith(
        "unknown reasoning-gym family 'gdc'\nhint: did you mean gcd"
    )


def test_an_option_the_family_refuses_is_named(tmp_path):
    family = FamilyOptions(name="gcd", options={"nonsense": 1})
    with pytest.raises(RecipeError, match="family gcd refuses options"):
        make(tmp_path, families=[family])


def write_problems(tmp_path, lines):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_own_problems_are_split_and_judged_as_mathematics(tmp_path):
    lines = [json.dumps({"question": f"What is {i} + 1?", "answer": i + 1}) for i in range(40)]
    path = write_problems(tmp_path, lines)
    _, train, evaluation = make(tmp_path / "out", files=[path], eval_per_family=8)
    assert (len(train), len(evaluation)) == (32, 8)
    assert {(p.family, p.scorer) for p in train} == {("mine", "math")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "mine.jsonl line 2 is not a problem"),
        ('{"question": "q"}', "mine.jsonl line 2 is not a problem: answer: Field required"),
        ('["q", "a"]', "mine.jsonl line 2 is not a problem: not an object"),
        ('{"question": "", "answer": "1"}', "mine.jsonl line 2 is not a problem: question"),
        ('{"question":"q","answer":"1","x":1}', "mine.jsonl line 2 is not a problem: x: Extra"),
    ],
)
def test_a_line_that_is_not_a_problem_is_named(tmp_path, line, message):
    path = write_problems(tmp_path, ['{"question": "ok", "answer": "1"}', line])
    with pytest.raises(DataError) as caught:
        make(tmp_path / "out", files=[path])
    assert message in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_dataset_in_the_style_of_gsm8k_loads_from_a_folder(tmp_path):
    folder = tmp_path / "gsm8k_style"
    folder.mkdir()
    rows = [
        {"question": f"Tom has {i} pens and buys 2.", "answer": f"{i}+2\n#### {i + 1000:,}"}
        for i in range(20)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, train, evaluation = make(
        tmp_path / "out", datasets=[DatasetOptions(name=str(folder))], eval_per_family=4
    )
    assert (len(train), len(evaluation)) == (16, 4)
    assert {p.family for p in train} == {"gsm8k_style"}
    assert {p.answer for p in [*train, *evaluation]} == {str(i + 1000) for i in range(20)}


def test_wrong_answers_become_choices_in_an_order_of_their_own(tmp_path):
    folder = tmp_path / "gpqa_style"
    folder.mkdir()
    rows = [
        {"Question": f"What is {i} + 2?", "Right": i + 2, "Wrong 1": i, "Wrong 2": f"not {i}"}
        for i in range(20)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = DatasetOptions(
        name=str(folder), question="Question", answer="Right", wrong=("Wrong 1", "Wrong 2")
    )
    _, train, evaluation = make(tmp_path / "out", datasets=[options], eval_per_family=4)
    problems = [*train, *evaluation]
    for problem in problems:
        number = int(re.match(r"What is (\d+) \+ 2\?", problem.question)[1])
        assert f"\n{problem.answer}) {number + 2}\n" in problem.question
        listed = re.findall(r"^([A-C])\) (.+)$", problem.question, re.MULTILINE)
        assert [letter for letter, _ in listed] == ["A", "B", "C"]
        assert {text for _, text in listed} == {str(number + 2), str(number), f"not {number}"}
        assert problem.scorer == "choice"
    assert {p.answer for p in problems} == {"A", "B", "C"}


def test_a_dataset_without_the_column_says_which_it_has(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "q", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"has no column 'question': \['prompt', 'answer'\]"):
        make(tmp_path / "out", datasets=[DatasetOptions(name=str(folder))])


def test_a_family_whose_verifier_accepts_anything_is_refused(tmp_path, monkeypatch):
    from pipeline.records import Verdict
    from pipeline.tasks.judge import Judge

    accepts_all = Verdict(passed=True, reason="correct", extracted="", verifier="v")
    monkeypatch.setattr(Judge, "judge", lambda *_: accepts_all)
    with pytest.raises(DataError, match="family gcd: its verifier accepts ''"):
        make(tmp_path, families=families("gcd"), train_per_family=4, eval_per_family=4)


def test_practice_takes_nothing_from_the_other_sides(tmp_path):
    options = {"families": families("gcd"), "train_per_family": 30, "eval_per_family": 10}
    make(tmp_path / "without", **options)
    counts, train, evaluation = make(tmp_path / "with", **options, practice_per_family=20)
    practice = list(read_records(tmp_path / "with" / "practice.jsonl", Problem))
    assert counts["practice"] == {"gcd": 20}
    assert not {p.question for p in practice} & {p.question for p in (*train, *evaluation)}
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert (tmp_path / "without" / "practice.jsonl").read_bytes() == b""


def test_a_file_of_your_own_gives_practice_its_part(tmp_path):
    lines = [json.dumps({"question": f"{n} + 1 =", "answer": str(n + 1)}) for n in range(40)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(lines))
    counts, train, evaluation = make(
        tmp_path / "out", files=[str(file)], eval_per_family=5, practice_per_family=6
    )
    assert (len(train), len(evaluation), counts["practice"]) == (29, 5, {"mine": 6})


def test_a_line_ends_where_a_file_s_line_ends(tmp_path):
    """Some of what ends a line elsewhere may stand in a JSON string as it is."""
    questions = [f"One\u2028and {n}\x85?" for n in range(40)]
    lines = [json.dumps({"question": q, "answer": "1"}, ensure_ascii=False) for q in questions]
    path = tmp_path / "mine.jsonl"
    path.write_text("\r\n".join(lines), encoding="utf-8")
    assert [p.question for p in jsonl_problems(path)] == questions

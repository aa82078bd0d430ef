"""General data: prompts from files, responses that are there, and the share of all examples."""

import json

import pytest

from pipeline import examples, general
from pipeline.progress import Progress
from pipeline.recipe import GeneralOptions, TeacherOptions
from pipeline.records import General
from pipeline.run import Context
from pipeline.store import read_records, write_records
from serve.errors import DataError

TEACHER = TeacherOptions(engine="http", base_url="http://none/v1", model="m", system="s")
CONTEXT = Context(1, Progress())


def collected(tmp_path, text):
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    options = GeneralOptions(files=(str(path),))
    (tmp_path / "out").mkdir()
    return general.run((TEACHER, options), {}, tmp_path / "out", CONTEXT)


def test_responses_that_are_there_are_not_asked_again(tmp_path):
    rows = [{"prompt": f"Say {n}.", "response": f"{n}"} for n in range(3)]
    counts = collected(tmp_path, "\n".join(json.dumps(row) for row in rows))
    assert counts == {"prompts": 3, "answered": 3, "cut": 0, "completion_tokens": 0}
    found = list(read_records(tmp_path / "out" / "general.jsonl", General))
    said = sorted((g.prompt, g.response) for g in found)
    assert said == [(f"Say {n}.", f"{n}") for n in range(3)]


def test_a_line_that_is_no_prompt_is_named(tmp_path):
    with pytest.raises(DataError, match=r"^mine\.jsonl line 2 is no prompt"):
        collected(tmp_path, '{"prompt": "a", "response": "b"}\n{"question": "a"}\n')


def test_the_built_in_prompts_are_distinct_and_none_is_an_evaluation_item():
    prompts = [row.prompt for row in general._prompts(GeneralOptions(files=("embedded",)))]
    assert len(set(prompts)) == len(prompts) == 60
    suite = general.BUILT_IN.parent.parent / "suites" / "general.jsonl"
    asked = {json.loads(line)["question"] for line in suite.read_text().splitlines()}
    assert not asked & set(prompts)


def test_general_data_is_a_share_of_all_examples(tmp_path):
    rows = [General(prompt=f"p{n}", response=f"r{n}") for n in range(50)]
    write_records(tmp_path / "general.jsonl", rows)
    inputs = {"02-general": tmp_path}
    quarter = examples._general(inputs, GeneralOptions(files=("x",)), 60, CONTEXT)
    assert len(quarter) == 20
    assert quarter[0].prompt[0] == {"role": "system", "content": "You are a helpful assistant."}
    assert {e.completion[0] for e in quarter} == {"r"}
    assert (
        len(examples._general(inputs, GeneralOptions(files=("x",), share=0.9), 60, CONTEXT)) == 50
    )

"""Overlaps that are there are found, with the text and the source; templates are not overlaps."""

import pytest

from pipeline.contamination import Trained, cleaned, overlaps
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Problem
from pipeline.tasks.gym import family_problems

TEMPLATE = "State the final answer to the following arithmetic problem:"


def problem(question):
    return Problem(question=question, answer="1", family="f", scorer="math")


def trained(*numbers):
    return [
        Trained("prompt", f"t{n}", f"{TEMPLATE} {n} + {n + 1} - {n + 2} =", f"t{n}")
        for n in numbers
    ]


def found(question, texts):
    rows = overlaps({"fresh": [problem(question)]}, texts)
    return {row.kind: (row.source, row.matched) for row in rows}


def test_a_template_that_many_problems_share_is_no_overlap():
    assert found(f"{TEMPLATE} 90 + 17 - 33 =", trained(*range(100, 140))) == {}


def test_the_same_problem_is_found_by_all_three():
    texts = trained(*range(100, 140))
    again = f"{TEMPLATE} 110 + 111 - 112 ="
    whole = "state the final answer to the following arithmetic problem : 110 + 111 - 112 ="
    assert found(again, texts) == {
        "8-gram": ("t110", whole),
        "13-gram": ("t110", whole),
        "near_duplicate": ("t110", texts[10].text),
    }


def test_a_problem_told_in_other_words_is_found_by_its_numbers():
    texts = trained(*range(100, 140))
    assert found("Work out 110 + 111 - 112 =", texts) == {
        "near_duplicate": ("t110", texts[10].text)
    }


def test_a_trace_that_holds_the_question_is_found():
    trace = Trained("trace", "s1", "First: what is 7 * 8 + 3 * 2 in total? It is 62.", "p1")
    rows = overlaps({"harder": [problem("What is 7 * 8 + 3 * 2 in total?")]}, [trace])
    assert [(r.kind, r.where, r.suite) for r in rows] == [
        ("8-gram", "trace", "harder"),
        ("near_duplicate", "trace", "harder"),
    ]
    assert rows[0].matched == "what is 7 * 8 + 3 * 2 in total ?"


def test_one_item_is_flagged_once_a_kind_by_what_is_most_like_it():
    texts = [
        Trained("prompt", "a", "one two three four five six seven eight nope", "a"),
        Trained("prompt", "b", "one two three four five six seven eight nine ten", "b"),
    ]
    rows = overlaps({"s": [problem("one two three four five six seven eight nine ten")]}, texts)
    assert [(r.kind, r.source) for r in rows] == [("8-gram", "b"), ("near_duplicate", "b")]


def test_accuracy_stands_with_and_without_flagged_items():
    right = {f"i{n}": n < 5 for n in range(10)}
    parts = cleaned(right, {"i0", "i1", "i9"})
    assert {name: (p["items"], p["accuracy"]) for name, p in parts.items()} == {
        "all": (10, 0.5),
        "flagged": (3, 2 / 3),
        "clean": (7, 3 / 7),
    }
    assert cleaned(right, set())["flagged"] is None


@pytest.mark.parametrize("copies", [10, 11, 16])
def test_what_many_traces_of_one_problem_say_is_no_template(copies):
    said = "So what is 7 * 8 + 3 * 2 in total? It is 62."
    texts = [Trained("trace", f"s{n:02d}", said, "p1") for n in range(copies)]
    rows = overlaps({"harder": [problem("What is 7 * 8 + 3 * 2 in total?")]}, texts)
    assert [(r.kind, r.source) for r in rows] == [("8-gram", "s00"), ("near_duplicate", "s00")]


def told_in_other_words(question):
    """What a problem asks, without the words and the sign that it asks with."""
    return f"Here is one I know, {question.partition(':')[2].strip(' =')} that is, and so"


@pytest.mark.parametrize("quoted", [True, False], ids=["question and answer", "answer alone"])
def test_a_seeded_leak_is_reported_with_its_ids(quoted):
    """Ten evaluation items hidden in 400 traces, three of them in other words, and no other:
    whether traces tell their own questions or, as a teacher's do, none."""
    families = load_recipe(find_recipe("default")).problems.families
    drawn = {f.name: list(family_problems(f.name, f.options, 11, 130)) for f in families}
    # Of sums, which no two of have the same numbers: products and divisors repeat by chance.
    items = drawn["chain_sum"][100:130]
    problems = [
        p
        for family in drawn.values()
        for p in family[:100]
        if p.question not in {i.question for i in items}
    ]
    prompts = [Trained("prompt", p.key, p.question, p.key) for p in problems]
    traces = [
        Trained("trace", f"t{p.key}", f"{p.question if quoted else ''}\nAnswer: {p.answer}", p.key)
        for p in problems
    ]
    leaked = sorted(items, key=lambda i: -len(i.question))[:10]
    for number, item in enumerate(leaked):
        text = told_in_other_words(item.question) if number < 3 else item.question
        told = traces[37 * number]
        traces[37 * number] = told._replace(text=f"{text}\n{told.text}")
    rows = overlaps({"fresh": items}, [*prompts, *traces])
    assert {row.where for row in rows} == {"trace"}
    assert {row.item for row in rows} == {item.key for item in leaked}
    sources = {row.item: row.source for row in rows}
    assert sources == {i.key: traces[37 * n].key for n, i in enumerate(leaked)}

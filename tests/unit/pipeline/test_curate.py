"""Which traces are dropped and why; and that streaming changes no byte of it."""

import hashlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.scale import counted
from benchmarks.synthetic_traces import MAX_TOKENS, PER_PROBLEM, SHARES, Synthetic
from pipeline.contamination import tokens_of
from pipeline.curate import curated
from pipeline.decisions import Plan
from pipeline.progress import Progress
from pipeline.quality import Chosen, foreign_letters, own_reason, similarity
from pipeline.recipe import CurateOptions
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Problem, Trace, Verdict
from pipeline.run import Context
from pipeline.store import write_records
from pipeline.supervise import reasoning_of
from pipeline.tasks.gym import family_problems
from serve.errors import DataError
from serve.messages import Completion
from tests.unit.pipeline import seeded_traces

PROBLEM = Problem(question="1 + 1 =", answer="2", family="sums")
OPTIONS = CurateOptions()


def trace(
    text: str, passed: bool | None = True, reason: str = "correct", tokens: int = 20
) -> Trace:
    return Trace(
        key="k",
        problem=PROBLEM,
        sample=0,
        model="m",
        prompt_sha256="p",
        completion=Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=tokens),
        verdict=Verdict(passed=passed, reason=reason, extracted="2", verifier="v"),
    )


def own(candidate, options=OPTIONS):
    return own_reason(candidate, reasoning_of(candidate.completion.text), options)


GOOD = trace("1 + 1 = 2\nAnswer: 2")


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (GOOD, None),
        (trace("1 + 1 = 3\nAnswer: 3", False, "wrong"), "wrong"),
        (trace("", False, "no_answer"), "no_answer"),
        (trace("1", False, "truncated"), "truncated"),
        (trace("1 + 1 = 2\nAnswer: 2", None, "verifier_timeout"), "not_scored"),
        (trace("1 + 1 = 2\nAnswer: 2", tokens=3), "too_short"),
        (trace("1 + 1 = 2\nAnswer: 2", tokens=100_001), "too_long"),
        (trace("Answer: 2"), "no_reasoning"),
        (trace("一加一等于二\nAnswer: 2"), "foreign_script"),
        (trace("so\nso\nso\nso\nAnswer: 2"), "repeats_itself"),
    ],
)
def test_every_drop_has_its_reason(candidate, reason):
    assert own(candidate) == reason


def test_keeping_everything_keeps_wrong_ones_too():
    everything = CurateOptions(keep="everything")
    assert own(trace("x", False, "wrong"), everything) is None


def test_duplicates_of_the_same_problem_are_dropped():
    chosen = Chosen(OPTIONS)
    assert chosen.refusal("1 + 1 = 2") is None
    assert chosen.refusal("1 + 1 = 2") == "duplicate"
    assert chosen.refusal("1 + 1 =  2") == "near_duplicate"
    assert chosen.refusal("one and one make two, since two follows one") is None
    assert not chosen.full
    assert chosen.refusal("two, as one and one are") is None
    assert chosen.refusal("counting on from one") is None
    assert chosen.full


def test_greek_is_mathematics():
    assert foreign_letters("π and ∑ and ℝ", ("LATIN",)) == ""
    assert foreign_letters("да", ("LATIN",)) == "да"


@given(st.lists(st.text(alphabet="ab é\u0fff\u1000数 ", max_size=12), min_size=2, max_size=2))
def test_similarity_is_that_of_sets_of_strings(texts):
    a, b = (
        {folded[i : i + 5] for i in range(max(1, len(folded) - 4))}
        for folded in (" ".join(text.casefold().split()) for text in texts)
    )
    assert similarity(*texts) == len(a & b) / len(a | b)


def test_similarity_is_one_for_equal_and_zero_for_disjoint():
    assert similarity("same words", "Same  words") == 1.0
    assert similarity("abcdefgh", "12345678") == 0.0


CONFIGS = {
    "default": CurateOptions(),
    "answered": CurateOptions(keep="answered", per_problem=2, near_duplicate=0.6),
    "everything": CurateOptions(keep="everything"),
    "scripts": CurateOptions(
        scripts=("LATIN", "CYRILLIC"),
        min_tokens=10,
        max_tokens=50,
        near_duplicate=1.0,
        per_problem=50,
    ),
    "s1": CurateOptions(select="s1", select_traces=40),
    "s1 all": CurateOptions(select="s1", select_traces=4000, keep="answered"),
}
# sha256 of kept.jsonl and dropped.jsonl as curation wrote them when it held all traces in memory.
GOLDEN = {
    "default": ("cdd82e1e76079f71", "8609fc03f39e3323"),
    "answered": ("c1ace53c616a6138", "ea68eac81729ec85"),
    "everything": ("ac5a4b5b9e1d39d7", "e3b0c44298fc1c14"),
    "scripts": ("a98600b2ea7ac457", "f373342f3cf2a878"),
    "s1": ("ef9bbcb5cbd41ae9", "7239cc078b2cf956"),
    "s1 all": ("b135e20286d6d9e5", "900d1be75f33437e"),
}
SMALL = Plan(workers=1, part_bytes=20_000, bucket_bytes=30_000, run_bytes=25_000)


def curate(folder, made, config, plan=SMALL):
    """(kept.jsonl, dropped.jsonl, counts) of traces in the order given."""
    inputs = {name: folder / name for name in ("01-problems", "02-traces", "03-references")}
    made = list(made)
    write_records(inputs["02-traces"] / "traces.jsonl", made)
    solved = seeded_traces.solved_by_someone(made)
    write_records(inputs["03-references"] / "references.jsonl", solved)
    context = Context(seed=5, progress=Progress())
    counts = curated(config, inputs, folder / "out", context, plan)
    assert not (folder / "out" / "scratch").exists()
    return (
        (folder / "out" / "kept.jsonl").read_text(),
        (folder / "out" / "dropped.jsonl").read_text(),
        counts,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_bytes_as_ever(tmp_path, name):
    kept, dropped, counts = curate(tmp_path, seeded_traces.traces(600), CONFIGS[name])
    found = tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in (kept, dropped))
    assert found == GOLDEN[name]
    assert sum(counts["kept"].values()) == kept.count("\n")
    assert sum(sum(c.values()) for c in counts["dropped"].values()) == dropped.count("\n")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 80),
    problems=st.integers(1, 12),
    part_bytes=st.integers(1, 40_000),
    bucket_bytes=st.integers(2_000, 40_000),
    run_bytes=st.integers(1, 40_000),
    shuffled=st.randoms() | st.none(),
    name=st.sampled_from(["default", "answered", "everything", "scripts"]),
)
def test_however_it_is_cut(
    tmp_path, seed, count, problems, part_bytes, bucket_bytes, run_bytes, shuffled, name
):
    made = seeded_traces.traces(count, seed, problems)
    if shuffled:
        shuffled.shuffle(made)
    plan = Plan(1, part_bytes, bucket_bytes, run_bytes)
    assert curate(tmp_path, made, CONFIGS[name], plan)[:2] == seeded_traces.plainly(
        made, CONFIGS[name]
    )


def test_the_synthetic_traces_of_the_benchmark_end_as_they_were_made(tmp_path):
    """So that `benchmarks/scale.py` can tell a wrong count from a right one."""
    made = Synthetic(2_000)
    write_records(tmp_path / "01-problems" / "eval.jsonl", made.evaluation())
    write_records(tmp_path / "01-problems" / "gate.jsonl", list[Problem]())
    config = CurateOptions(decontaminate=True, per_problem=PER_PROBLEM, max_tokens=MAX_TOKENS)
    counts = curate(tmp_path, made.traces(range(2_000)), config)[2]
    assert counted(counts) == made.expected()
    assert {*made.expected()} == {*SHARES, "kept", "over_quota"}


def test_however_many_work_at_it(tmp_path):
    made = seeded_traces.traces(200, seed=3)
    one, three = (
        curate(tmp_path, made, OPTIONS, SMALL._replace(workers=count)) for count in (1, 3)
    )
    assert one == three


def test_a_line_that_is_written_otherwise_comes_out_as_a_store_writes_it(tmp_path):
    made = seeded_traces.traces(40)
    expected = curate(tmp_path, made, OPTIONS)
    path = tmp_path / "02-traces" / "traces.jsonl"
    path.write_text(path.read_text().replace('{"key":', '{ "key": ').rstrip("\n"))
    inputs = {name: tmp_path / name for name in ("02-traces",)}
    curated(OPTIONS, inputs, tmp_path / "out", Context(seed=5, progress=Progress()), SMALL)
    assert (tmp_path / "out" / "kept.jsonl").read_text() == expected[0]


def test_a_bad_line_is_named_by_its_number_in_the_file(tmp_path):
    made = seeded_traces.traces(60)
    curate(tmp_path, made, OPTIONS)
    path = tmp_path / "02-traces" / "traces.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:47], '{"key":1}\n', *lines[47:]]))
    inputs = {"02-traces": tmp_path / "02-traces"}
    context = Context(seed=5, progress=Progress())
    with pytest.raises(DataError, match=r"traces\.jsonl line 48 is not a trace: key"):
        curated(OPTIONS, inputs, tmp_path / "out", context, SMALL)


def test_a_file_without_traces_keeps_none(tmp_path):
    assert curate(tmp_path, [], OPTIONS) == ("", "", {"kept": {}, "dropped": {}})


def test_what_is_off_is_in_no_fingerprint():
    assert "decontaminate" not in CurateOptions().model_dump(mode="json")
    assert CurateOptions(decontaminate=True).model_dump(mode="json")["decontaminate"] is True


EVALUATION = "a train leaves the station at noon and reaches the next town after two hours"


def leaky(number, question, text, tokens=20):
    made = trace(f"{text}\nAnswer: 2", tokens=tokens)
    problem = Problem(question=question, answer="2", family="trains")
    return made.model_copy(update={"key": f"k{number:02d}", "problem": problem})


def test_what_was_taken_from_the_evaluation_is_dropped_and_what_is_common_to_all_is_not(tmp_path):
    words = EVALUATION.split()
    other = "we count the wagons of this problem one by one, as every problem asks us to do"
    made = [
        leaky(0, f"{EVALUATION}. How far is it?", f"first {other}"),
        leaky(1, "How far is it?", f"since {' '.join(words[1:14])} it follows"),
        leaky(2, "How far?", f"since {' '.join(words[:9])} it follows"),
        leaky(3, "How far?", f"since {' '.join(words[:7])} it follows, and so on"),
        *(leaky(4 + n, f"Say it: {other}? {n}", f"{n} {other}") for n in range(11)),
    ]
    items = [
        Problem(question=text, answer="2", family="trains") for text in (EVALUATION, other, "1 + 1")
    ]
    write_records(tmp_path / "01-problems" / "eval.jsonl", items)
    write_records(tmp_path / "01-problems" / "gate.jsonl", items[:1])
    kept, dropped, counts = curate(tmp_path, made, CurateOptions(decontaminate=True))
    assert dropped.splitlines() == [
        '{"key":"k00","family":"trains","reason":"contaminated"}',
        '{"key":"k01","family":"trains","reason":"contaminated"}',
    ]
    assert [json.loads(line)["key"] for line in kept.splitlines()] == [t.key for t in made[2:]]
    assert counts["decontaminate"] == {
        "items": 3,
        "items_too_short": 1,
        "traces_that_share": {"13-gram": 2, "8-gram": 3},
    }
    overlaps = [
        json.loads(line) for line in (tmp_path / "out" / "overlaps.jsonl").read_text().splitlines()
    ]
    assert [(o["source"], o["kind"], o["where"], o["matched"]) for o in overlaps] == [
        ("k00", "8-gram", "prompt", EVALUATION),
        ("k00", "13-gram", "prompt", EVALUATION),
        ("k01", "8-gram", "trace", " ".join(words[1:14])),
        ("k01", "13-gram", "trace", " ".join(words[1:14])),
        ("k02", "8-gram", "trace", " ".join(words[:9])),
    ]
    assert {o["item"] for o in overlaps} == {items[0].key}


def test_a_leak_takes_no_place_among_the_chosen(tmp_path):
    text = "so the answer follows at once"
    made = [
        leaky(0, "How far?", f"{EVALUATION}: {text}", tokens=10),
        leaky(1, "How far?", f"{EVALUATION}? {text}", tokens=11),
        leaky(2, "How far?", text, tokens=12),
    ]
    items = [Problem(question=EVALUATION, answer="2", family="trains")]
    for name in ("eval", "gate"):
        write_records(tmp_path / "01-problems" / f"{name}.jsonl", items)
    one = CurateOptions(per_problem=1)
    assert '"k00"' in curate(tmp_path, made, one)[0]
    kept, dropped, _ = curate(tmp_path, made, one.model_copy(update={"decontaminate": True}))
    assert [json.loads(line)["key"] for line in kept.splitlines()] == ["k02"]
    assert dropped.count("contaminated") == 2


@pytest.mark.parametrize("name", ["chain_sum", "gcd", "products", "simple_equations"])
def test_a_template_and_the_first_number_after_it_are_no_leak(tmp_path, name):
    """225 items and 120 problems of the default recipe: each first number stands in few of both."""
    families = load_recipe(find_recipe("default")).problems.families
    options = next(family.options for family in families if family.name == name)
    items = list(family_problems(name, options, 1, 225))
    asked = {item.question for item in items}
    train = [p for p in family_problems(name, options, 2, 200) if p.question not in asked][:120]
    leaked = sorted(items, key=lambda p: -len(tokens_of(p.question)))[:3]
    assert len(leaked) == 3
    made = [
        leaky(n, problem.question, "so it is") for n, problem in enumerate([*train, *leaked], 100)
    ]
    for side in ("eval", "gate"):
        write_records(tmp_path / "01-problems" / f"{side}.jsonl", items)
    _, dropped, _ = curate(tmp_path, made, CurateOptions(decontaminate=True, near_duplicate=1.0))
    found = [row["key"] for row in map(json.loads, dropped.splitlines())]
    assert found[-3:] == [t.key for t in made[-3:]]
    # What two of so many calculations have in common by chance: one in a hundred at most.
    assert len(found) <= 3 + 1


@pytest.mark.parametrize("numbers", [2, 5])
def test_an_item_whose_numbers_stand_far_apart_is_found(tmp_path, numbers):
    """No eight tokens hold all of its own, and no thirteen hold four."""
    words = ["and", "then", "the", "train", "goes", "on", "to", "the", "next", "town", "until"]

    def told(first):
        return " ".join(" ".join([*words, str(first + n)]) for n in range(numbers))

    items = [Problem(question=told(100 * n), answer="2", family="trains") for n in range(1, 41)]
    made = [
        leaky(0, "How far?", f"since {items[20].question} it follows"),
        leaky(1, "How far?", f"since {' '.join(words)} 7 {' '.join(words)} it follows"),
    ]
    for side in ("eval", "gate"):
        write_records(tmp_path / "01-problems" / f"{side}.jsonl", items)
    _, dropped, _ = curate(tmp_path, made, CurateOptions(decontaminate=True, near_duplicate=1.0))
    assert [json.loads(line)["key"] for line in dropped.splitlines()] == ["k00"]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part_bytes=st.integers(1, 9_000), bucket_bytes=st.integers(1_000, 9_000))
def test_leaks_are_the_same_however_it_is_cut(tmp_path, part_bytes, bucket_bytes):
    made = seeded_traces.traces(60)
    items = [t.problem for t in made[::9]]
    items = [p.model_copy(update={"question": f"{p.question} {EVALUATION}"}) for p in items]
    texts = [f"{EVALUATION} {n // 4}\nAnswer: 2" for n in range(60)]
    made = [
        t.model_copy(update={"completion": t.completion.model_copy(update={"text": text})})
        for t, text in zip(made, texts, strict=True)
    ]
    for name in ("eval", "gate"):
        write_records(tmp_path / "01-problems" / f"{name}.jsonl", items)
    config = CurateOptions(decontaminate=True, near_duplicate=1.0)
    whole = curate(tmp_path, made, config, Plan(1))
    overlaps = (tmp_path / "out" / "overlaps.jsonl").read_bytes()
    assert curate(tmp_path, made, config, Plan(1, part_bytes, bucket_bytes)) == whole
    assert (tmp_path / "out" / "overlaps.jsonl").read_bytes() == overlaps

"""Traces out of a run and into another: the same bytes, or a reason and nothing changed."""

import hashlib
import json
import random

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import traces
from pipeline.imported import IMPORTED, Imported
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Problem
from pipeline.run import RunDir
from pipeline.sorted_runs import merged
from pipeline.store import read_records, write_json, write_records
from pipeline.tasks.judge import Judge
from pipeline.trace_rows import COLUMNS, row_of
from serve.errors import BusyRun, DataError, UntrustedFile, UsageError
from tests.unit.pipeline import seeded_traces


def run_with(folder, made):
    """A run that has traces."""
    write_records(folder / "02-traces" / "traces.jsonl", made)
    recipe = load_recipe(find_recipe("smoke"))
    write_json(folder / "recipe.json", recipe.model_dump(mode="json"))
    return folder


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def rehash(folder):
    """Make the checksums of a changed export right again, as whoever made it would."""
    about = json.loads((folder / "shards.json").read_text())
    for shard in about["shards"]:
        shard["sha256"] = hashlib.sha256((folder / shard["name"]).read_bytes()).hexdigest()
    (folder / "shards.json").write_text(json.dumps(about))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_out_and_in_again_is_the_same_bytes(tmp_path, kind):
    run = run_with(tmp_path / "run", seeded_traces.traces(3000))
    assert traces.main(["export", str(run), str(tmp_path / "out"), "--format", kind]) == 0
    assert files(tmp_path / "out") == ["README.md", "shards.json", f"traces-00000-of-00001.{kind}"]
    assert traces.main(["import", str(tmp_path / "out"), str(tmp_path / "new")]) == 0
    stored = (run / "02-traces" / "traces.jsonl").read_bytes()
    assert (tmp_path / "new" / IMPORTED).read_bytes() == stored
    assert traces.main(["import", str(tmp_path / "out"), str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / IMPORTED).read_bytes() == stored
    assert files(tmp_path / "new") == [IMPORTED, "run.lock"]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(3_000, 200_000),
    kind=st.sampled_from(["parquet", "jsonl"]),
    seed=st.integers(0, 99),
)
def test_any_number_of_shards_holds_the_same(tmp_path_factory, cut, kind, seed):
    folder = tmp_path_factory.mktemp("shards")
    run = run_with(folder / "run", seeded_traces.traces(100, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces, "MEGABYTE", 1)
        about = traces.export(run, folder / "out", kind, cut)
    names = [shard.name for shard in about.shards]
    count = len(names)
    assert names == [f"traces-{n:05d}-of-{count:05d}.{kind}" for n in range(count)]
    assert traces.bring(folder / "out", folder / "new") == about.traces == 100
    stored = (run / "02-traces" / "traces.jsonl").read_bytes()
    assert (folder / "new" / IMPORTED).read_bytes() == stored


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_datasets_loads_the_folder(tmp_path, kind):
    made = seeded_traces.traces(600)
    traces.export(run_with(tmp_path / "run", made), tmp_path / "out", kind)
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.column_names == list(COLUMNS)
    assert [loaded[n] for n in (0, 7, 599)] == [row_of(made[n]) for n in (0, 7, 599)]
    assert loaded.features["ids"] == datasets.List(datasets.Value("int64"))


def test_the_card_says_what_it_is(tmp_path):
    made = seeded_traces.traces(40)
    about = traces.export(run_with(tmp_path / "run", made), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert '    path: "traces-*.parquet"\n' in card
    assert "40 worked answers" in card
    assert "| `a teacher` | 40 |" in card
    assert about.license == "Apache-2.0"
    assert sum(about.verdicts.values()) == sum(about.families.values()) == 40


def test_traces_of_two_models_have_no_one_licence(tmp_path):
    made = seeded_traces.traces(8)
    made[3] = made[3].model_copy(update={"model": "another"})
    traces.export(run_with(tmp_path / "run", made), tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlicense: other\n")


def test_an_export_that_fails_leaves_nothing(tmp_path):
    made = seeded_traces.traces(8)
    run = run_with(tmp_path / "run", made)
    store = run / "02-traces" / "traces.jsonl"
    store.write_text(store.read_text().replace('"sample":', '"sampel":', 1))
    with pytest.raises(DataError, match=r"traces\.jsonl byte 0 is not a trace: sample"):
        traces.export(run, tmp_path / "out")
    assert files(tmp_path) == ["run"]


def test_an_export_never_writes_over_anything(tmp_path):
    run = run_with(tmp_path / "run", seeded_traces.traces(8))
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="out is there already"):
        traces.export(run, tmp_path / "out")
    with pytest.raises(DataError, match=r"traces\.jsonl has no traces"):
        traces.export(run_with(tmp_path / "empty", []), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def exported(tmp_path):
    """An export of 20 traces as JSON lines, and a run that has none of them."""
    made = seeded_traces.traces(20)
    traces.export(run_with(tmp_path / "run", made), tmp_path / "out", "jsonl")
    (tmp_path / "new").mkdir()
    return tmp_path / "out", tmp_path / "new", made


SHARD = "traces-00000-of-00001.jsonl"


def refused(exported, kind, match):
    with pytest.raises(kind, match=match):
        traces.bring(*exported[:2])
    assert not (exported[1] / IMPORTED).exists()
    assert files(exported[1]) in ([], ["run.lock"])


def test_a_changed_shard_is_refused(exported):
    path = exported[0] / SHARD
    path.write_bytes(path.read_bytes().replace(b"a teacher", b"b teacher", 1))
    refused(exported, UntrustedFile, r"sha256 of .*00001\.jsonl is .{64}, shards\.json says .{64}")


def test_a_missing_and_an_unlisted_shard_are_refused(exported):
    path = exported[0] / SHARD
    other = path.with_name("traces-00001-of-00002.jsonl")
    other.write_bytes(b"")
    refused(exported, UntrustedFile, r"traces-00001-of-00002\.jsonl is not in shards\.json")
    path.rename(other)
    path.with_name(other.name).unlink()
    refused(exported, DataError, r"traces-00000-of-00001\.jsonl is missing")


def test_a_list_of_shards_outside_the_folder_is_refused(exported):
    path = exported[0] / "shards.json"
    path.write_text(path.read_text().replace(SHARD, f"../{SHARD}"))
    refused(exported, DataError, r"shards\.json is not a shards: shards\.0\.name")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"completion_tokens": "12"}, r"line 3: completion\.completion_tokens: .*valid integer"),
        ({"finish": "done"}, r"line 3: completion\.finish: "),
        ({"question": ""}, r"line 3: problem\.question: "),
        ({"entry": "{"}, r"line 3: entry: "),
        ({"entry": "[1]"}, r"line 3: problem\.entry: "),
        ({"note": 1}, r"line 3: column 'note' is unknown"),
        ({"ids": [1, 2.5]}, r"line 3: completion\.ids\.1: "),
    ],
)
def test_a_bad_row_is_refused_with_its_line(exported, change, fault):
    path = exported[0] / SHARD
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines) + "\n")
    rehash(exported[0])
    refused(exported, DataError, SHARD.replace(".", r"\.") + " " + fault)


def test_a_row_that_is_cut_or_left_out_is_refused(exported):
    path = exported[0] / SHARD
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    rehash(exported[0])
    refused(exported, DataError, r"jsonl line 20 is no JSON")
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    rehash(exported[0])
    refused(exported, DataError, r"has 19 traces, shards\.json says 20")


def test_parquet_with_a_bad_row_or_other_columns_is_refused(tmp_path):
    made = seeded_traces.traces(20)
    out = tmp_path / "out"
    traces.export(run_with(tmp_path / "run", made), out)
    exported = out, tmp_path / "new", made
    exported[1].mkdir()
    path = out / "traces-00000-of-00001.parquet"
    table = pq.read_table(path)
    reasons = table["reason"].to_pylist()
    column = table.column_names.index("reason")
    reasons[4] = "beautiful"
    pq.write_table(table.set_column(column, "reason", pa.array(reasons)), path)
    rehash(out)
    refused(exported, DataError, r"parquet row 5: verdict\.reason: ")
    pq.write_table(table.set_column(column, "reason", pa.array(range(20))), path)
    rehash(out)
    refused(exported, DataError, r"parquet: column 'reason' is int64, not string")
    path.write_bytes(b"PAR1 it is not")
    rehash(out)
    refused(exported, DataError, r"cannot read .*parquet: ")


def test_exports_add_up_and_one_key_is_one_trace(tmp_path):
    made = seeded_traces.traces(60)
    first, second = made[:40], made[20:]
    for name, some in (("a", first), ("b", second[::-1])):
        traces.export(run_with(tmp_path / f"run-{name}", some), tmp_path / name)
    assert traces.bring(tmp_path / "a", tmp_path / "new") == 40
    assert traces.bring(tmp_path / "b", tmp_path / "new") == 60
    both = list(read_records(tmp_path / "new" / IMPORTED, type(made[0])))
    assert both == made
    before = (tmp_path / "new" / IMPORTED).read_bytes()
    other = made[7].model_copy(update={"model": "another teacher"})
    traces.export(run_with(tmp_path / "run-c", [other]), tmp_path / "c")
    with pytest.raises(DataError, match=f"two different answers have the key {other.key}"):
        traces.bring(tmp_path / "c", tmp_path / "new")
    verdict = made[7].verdict.model_copy(update={"verifier": "of another release"})
    again = made[7].model_copy(update={"verdict": verdict})
    traces.export(run_with(tmp_path / "run-d", [again]), tmp_path / "d")
    assert traces.bring(tmp_path / "d", tmp_path / "new") == 60
    assert (tmp_path / "new" / IMPORTED).read_bytes() == before
    assert files(tmp_path / "new") == [IMPORTED, "run.lock"]


def test_more_files_than_may_be_open_are_merged_in_rounds(tmp_path):
    rng = random.Random(0)
    lines = [b'{"key": "%05d"}\n' % number for number in range(500)]
    shares = [[] for _ in range(37)]
    for line in lines:
        rng.choice(shares).append(line)
    paths = [tmp_path / f"{n:02}" for n in range(37)]
    for path, share in zip(paths, shares, strict=True):
        path.write_bytes(b"".join(share))
    assert list(merged(paths, traces._key, tmp_path, at_once=3)) == lines
    # 37 files in thirteen, in five, in two.
    assert len(list(tmp_path.glob("merged-*"))) == 13 + 5 + 2


def test_a_run_that_is_at_work_or_not_there_is_not_exported(tmp_path):
    run = run_with(tmp_path / "run", seeded_traces.traces(3))
    with RunDir(run).locked(), pytest.raises(BusyRun):
        traces.export(run, tmp_path / "out")
    with pytest.raises(DataError):
        traces.export(tmp_path / "none", tmp_path / "out")
    assert files(tmp_path) == ["run"]


def test_imported_traces_answer_what_would_be_asked_and_are_judged_again(tmp_path):
    """A false verdict is not believed, and a question of the evaluation is not learned from."""
    made = seeded_traces.traces(12)
    liar = next(t for t in made if t.problem != made[8].problem and t.verdict.passed)
    said = liar.completion.model_copy(update={"text": "I say: 3\nAnswer: 3"})
    made[made.index(liar)] = liar.model_copy(update={"completion": said})
    write_records(tmp_path / IMPORTED, made)
    asked = {*[t.key for t in made[3:6:2] if t.key != liar.key], "never seen"}
    problems = tmp_path / "01-problems"
    write_records(problems / "eval.jsonl", [made[8].problem])
    write_records(problems / "gate.jsonl", list[Problem]())
    imported = Imported(tmp_path / IMPORTED, asked, problems)
    for _ in range(2):
        imported.answer(tmp_path / "answers.jsonl")
    log = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in log] == sorted(asked - {"never seen"})
    with Judge() as judge:
        beside = list(imported.beside(judge))
    left_out = {t.key for t in made if t.problem.question == made[8].problem.question}
    expected = [t.key for t in made if t.key not in asked | left_out]
    assert [t.key for t in beside] == expected
    judged = next(t.verdict for t in beside if t.key == liar.key)
    assert (judged.passed, judged.reason) == (False, "wrong")
    assert list(Imported(None, asked, problems).beside(judge)) == []

import logging
import os
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.progress import Progress
from pipeline.recipe import GgufOptions
from pipeline.run import SCRATCH, Context, RunDir, Stage, run_stage
from pipeline.store import write_file
from serve.errors import BusyRun, DiskError

CONTEXT = Context(seed=1, progress=Progress(), log=logging.getLogger("test"))


def write_two_files(config, inputs, out, context):
    write_file(out / "a.bin", bytes(range(256)) * 16)
    write_file(out / "deep" / "b.bin", b"second")
    write_file(out / SCRATCH / "log", b"not proof")
    return {"files": 2}


def stage(work=write_two_files, version=1, **config):
    module = SimpleNamespace(STAGE_VERSION=version, LIBRARIES=("pydantic",), run=work)
    return Stage("01-test", module, GgufOptions(**config), ())


def test_done_is_proven_by_every_hash(tmp_path):
    run, one = RunDir(tmp_path), stage()
    fingerprint = run.fingerprint(one, {}, 1)
    assert run.proven(one, fingerprint) is None
    manifest = run_stage(run, one, fingerprint, CONTEXT)
    assert sorted(manifest.files) == ["a.bin", "deep/b.bin"]
    assert run.proven(one, fingerprint) == manifest


def test_no_corruption_is_accepted_as_done(tmp_path):
    run, one = RunDir(tmp_path), stage()
    fingerprint = run.fingerprint(one, {}, 1)
    run_stage(run, one, fingerprint, CONTEXT)
    draw = random.Random(7)
    files = [tmp_path / "01-test" / name for name in ("a.bin", "deep/b.bin", "manifest.json")]
    accepted = 0
    for _ in range(100):
        path = draw.choice(files)
        whole = path.read_bytes()
        damage = draw.choice(["flip", "cut", "remove"])
        if damage == "remove":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(whole[: draw.randrange(len(whole) - 2)])
        else:
            place = draw.randrange(len(whole))
            flipped = whole[place] ^ (1 << draw.randrange(8))
            path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        found = run.proven(one, fingerprint)
        if found is not None and path.name != "manifest.json":
            accepted += 1
        path.write_bytes(whole)
    assert accepted == 0


@pytest.mark.parametrize(
    "changed", [stage(version=2), stage(types=("F16",)), stage(types=("F16", "Q8_0"))]
)
def test_a_changed_field_or_version_is_another_fingerprint(tmp_path, changed):
    run = RunDir(tmp_path)
    assert run.fingerprint(changed, {}, 1) != run.fingerprint(stage(), {}, 1)


def test_a_file_that_people_keep_in_the_run_is_read_and_changes_the_fingerprint(tmp_path):
    seen = []
    one = replace(stage(lambda _config, inputs, *_: seen.append(inputs) or {}), reads=("kept",))
    run = RunDir(tmp_path)
    without = run.fingerprint(one, {}, 1)
    assert without == run.fingerprint(replace(one, reads=()), {}, 1)
    run_stage(run, one, without, CONTEXT)
    (tmp_path / "kept").write_text("a case")
    run_stage(run, one, run.fingerprint(one, {}, 1), CONTEXT)
    assert seen == [{}, {"kept": tmp_path / "kept"}]
    assert run.fingerprint(one, {}, 1) != without


def test_the_seed_is_part_of_the_fingerprint(tmp_path):
    run = RunDir(tmp_path)
    assert run.fingerprint(stage(), {}, 1) != run.fingerprint(stage(), {}, 2)


def test_two_processes_never_share_a_run(tmp_path):
    with RunDir(tmp_path).locked(), pytest.raises(BusyRun) as caught, RunDir(tmp_path).locked():
        pass
    assert f"process {os.getpid()} works in it" in str(caught.value)
    with RunDir(tmp_path).locked():
        pass


def test_a_library_that_hits_a_full_disk_ends_as_disk_error(tmp_path):
    def full(*_):
        raise RuntimeError("SafetensorError: No space left on device (os error 28)")

    run, one = RunDir(tmp_path), stage(full)
    with pytest.raises(DiskError, match="No space left") as caught:
        run_stage(run, one, "f", CONTEXT)
    assert caught.value.exit_code == 4
    assert run.manifest(one) is None


def test_a_failed_stage_leaves_no_manifest_of_an_earlier_success(tmp_path):
    run, one = RunDir(tmp_path), stage()
    run_stage(run, one, "old", CONTEXT)

    def fails(*_):
        raise KeyError("boom")

    with pytest.raises(KeyError):
        run_stage(run, stage(fails), "new", CONTEXT)
    assert run.manifest(one) is None


def test_a_stage_is_done_again_when_what_people_wrote_for_it_changed(tmp_path):
    mine, folder = tmp_path / "mine.jsonl", tmp_path / "rows"
    mine.write_text("a problem")
    folder.mkdir()
    (folder / "part").write_text("more")
    one = replace(stage(), sources=(str(mine), str(folder), "owner/on-a-hub"))
    run = RunDir(tmp_path / "run")
    fingerprint = run.fingerprint(one, {}, 1)
    manifest = run_stage(run, one, fingerprint, CONTEXT)
    assert sorted(manifest.sources) == sorted([str(mine), str(folder)])
    assert run.proven(one, fingerprint) == manifest
    mine.write_text("a problem, corrected")
    assert run.proven(one, fingerprint) is None
    manifest = run_stage(run, one, fingerprint, CONTEXT)
    (folder / "part").write_text("less")
    assert run.proven(one, fingerprint) is None
    (folder / "part").write_text("more")
    mine.unlink()  # moved away since: the run still stands
    assert run.proven(one, fingerprint) == manifest

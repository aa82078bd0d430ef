"""What answered is told from what answers now: models that changed in place, other releases."""

import os

from pipeline import examine
from pipeline.all import stages
from pipeline.catalogue import run_catalogue
from pipeline.examine import base_rung, checkpoint_rung
from pipeline.recipe import EvaluateOptions, StudentOptions
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.run import Manifest, RunDir
from pipeline.store import write_json
from pipeline.student import student_identity
from pipeline.teacher import teacher_identity
from serve.models import artifact_sha256, content_sha256


def own_models(folder):
    """A recipe whose models are files that no hash was given for."""
    for name in ("student", "teacher"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(name.encode())
    (folder / "mine.toml").write_text(
        'extends = "default"\n'
        f'[student]\nanew = true\nmodel = "path:{folder}/student"\nsystem = "s"\n'
        f'[teacher]\nanew = true\nmodel = "path:{folder}/teacher"\nsystem = "s"\n'
    )
    return load_recipe(find_recipe(str(folder / "mine.toml")))


def test_a_model_that_changed_in_place_is_another_one(tmp_path):
    recipe = own_models(tmp_path)
    sources = {stage.name: stage.sources for stage in stages(recipe)}
    student, teacher = str(tmp_path / "student"), str(tmp_path / "teacher")
    assert (sources["02-traces"], sources["04-sft"]) == ((teacher,), (student,))
    assert sources["08-evaluate"] == (teacher, student)
    run, sft = RunDir(tmp_path / "run"), next(s for s in stages(recipe) if s.name == "04-sft")
    done = Manifest(
        stage="04-sft", fingerprint="f", files={}, sources=sft.sources_now(), counts={}, took_s=0
    )
    write_json(run.manifest_path(sft), done.model_dump(mode="json"))
    assert run.proven(sft, "f") == done
    before = student_identity(recipe.student), teacher_identity(recipe.teacher)
    for name in ("student", "teacher"):
        (tmp_path / name / "model.safetensors").write_bytes(b"another")
    assert run.proven(sft, "f") is None
    after = student_identity(recipe.student), teacher_identity(recipe.teacher)
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False]


def test_models_with_a_hash_are_no_sources():
    assert not any(stage.sources for stage in stages(load_recipe(find_recipe("default"))))


def test_a_hash_is_taken_again_when_a_file_changed(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    first = content_sha256(tmp_path)
    assert first == artifact_sha256(tmp_path) == content_sha256(tmp_path)
    (tmp_path / "a").write_bytes(b"2")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert content_sha256(tmp_path) == artifact_sha256(tmp_path) != first


def test_another_release_of_a_runtime_is_asked_again(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    student, options = StudentOptions(model="path:none", system="s"), EvaluateOptions()
    rungs = [checkpoint_rung(tmp_path, student, options), base_rung(student, options)]
    monkeypatch.setattr(examine, "package_version", lambda name: f"{name} of tomorrow")
    later = [checkpoint_rung(tmp_path, student, options), base_rung(student, options)]
    assert later[0].identity.startswith("transformers transformers of tomorrow torch of tomorrow:")
    assert not {rung.identity for rung in rungs} & {rung.identity for rung in later}


def test_a_catalogue_says_where_a_teacher_lies_from_anywhere(tmp_path, monkeypatch):
    recipe = own_models(tmp_path)
    teacher = recipe.teacher.model_copy(update={"model": "path:teacher"})
    monkeypatch.chdir(tmp_path)
    for name in ("06-gguf", "07-onnx"):
        (tmp_path / name).mkdir()
    inputs = {name: tmp_path / name for name in ("06-gguf", "07-onnx")}
    (entry,) = run_catalogue(recipe.model_copy(update={"teacher": teacher}), inputs, None)
    assert entry["model"] == f"path:{tmp_path}/teacher"

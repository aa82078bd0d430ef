"""The Dockerfile: what it promises is in it, and the steps of the edge image that can run here do.

No container engine runs here. The build stage is done in an empty folder, with `/opt/retort` and
`/retort` put below it; then the final stage's command answers from what it would copy.
"""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from dockerfile_parse import DockerfileParser

from serve.models import resolve_model
from tests.e2e.conftest import ROOT
from tests.e2e.serving import NAME, STUDENT, write_bundle

COMPILERS = ("gcc", "g++", "build-essential", "cmake", "clang")


def stages():
    """Instructions of each stage, by its name."""
    found = {}
    steps = DockerfileParser(path=str(ROOT / "Dockerfile")).structure
    for step in steps:
        if step["instruction"] == "FROM":
            _, _, name = step["value"].partition(" AS ")
            found[name] = []
        if step["instruction"] != "COMMENT":
            found[name].append((step["instruction"], step["value"]))
    return found


def values(stage, instruction):
    return [value for name, value in stages()[stage] if name == instruction]


def test_the_edge_image_has_no_compiler_and_no_root():
    assert list(stages()) == ["build", "edge", "train"]
    assert values("edge", "FROM") == ["python:3.11-slim-bookworm AS edge"]
    assert values("edge", "USER") == ["retort"]
    assert values("edge", "COPY") == ["--from=build /opt/retort /opt/retort"]
    assert not [step for step in values("edge", "RUN") for word in COMPILERS if word in step]
    assert "PYTHONDONTWRITEBYTECODE=1" in values("edge", "ENV")[0]
    assert values("edge", "CMD") == ['["/bundle", "--host", "0.0.0.0"]']


def test_the_train_image_installs_what_make_would():
    assert values("train", "USER") == ["retort"]
    # Its user is who mounts folders; ubuntu's images have another of that number.
    flags, user_id = values("train", "ARG")
    assert user_id == "USER_ID=1000"
    # Of any processor, as the other image's: it is not run where it is built.
    assert [flags] == values("build", "ARG") == ["LLAMA_FLAGS=-DGGML_NATIVE=OFF"]
    (user,) = [step for step in values("train", "RUN") if "useradd" in step]
    assert user.startswith('userdel --remove ubuntu && useradd --create-home --uid "$USER_ID"')
    (setup,) = [step for step in values("train", "RUN") if step.startswith("make")]
    given = setup.replace("$LLAMA_FLAGS", flags.partition("=")[2])
    planned = subprocess.run(
        [*shlex.split(given), "--dry-run", "--always-make"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "'.[serve,apps,pipeline,ray,cuda,dev]'" in planned
    assert "CMAKE_ARGS='-DGGML_NATIVE=OFF' " in planned
    assert "--no-build-isolation --no-deps -r deepspeed.txt" in planned
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


class Build:
    """Does the steps of a stage below a folder, as an image would do them below `/`."""

    def __init__(self, root, arguments):
        self.root, self.arguments, self.workdir = root, arguments, root

    def here(self, text):
        return text.replace("/opt/retort", str(self.root / "opt/retort"))

    def do(self, instruction, value):
        if instruction == "WORKDIR":
            self.workdir = self.root / value.lstrip("/")
            self.workdir.mkdir(parents=True)
        elif instruction == "COPY":
            *sources, target = shlex.split(value)
            for source in sources:
                self.copy(ROOT / source, self.workdir / target)
        elif instruction == "RUN":
            (self.root / "opt").mkdir(exist_ok=True)
            subprocess.run(
                ["sh", "-c", self.here(value)],
                cwd=self.workdir,
                env=os.environ | self.arguments,
                check=True,
                timeout=1200,
            )

    def copy(self, source, target):
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The build stage, with the flags of this machine: its wheel lies in the cache already."""
    flags = subprocess.run(
        ["sh", str(ROOT / "scripts/llama_flags.sh")], capture_output=True, text=True, check=True
    ).stdout.strip()
    build = Build(tmp_path_factory.mktemp("image"), {"LLAMA_FLAGS": flags})
    for instruction, value in stages()["build"]:
        build.do(instruction, value)
    return build


def test_what_the_edge_image_copies_holds_no_torch(built):
    (site,) = (built.root / "opt/retort/lib").glob("*/site-packages")
    names = {p.name.lower().partition("-")[0] for p in site.iterdir()}
    assert {"llama_cpp", "onnxruntime_genai", "fastapi", "gradio", "serve", "apps"} <= names
    assert not {"torch", "transformers", "pipeline", "quant", "pip"} & names


def test_the_edge_image_answers_and_writes_nothing(built, tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    shutil.copy(resolve_model(STUDENT.model, STUDENT.sha256), bundle / "student.gguf")
    catalogue = json.loads((bundle / "chat.json").read_text())
    catalogue["speakers"][0]["model"] = "path:student.gguf"
    (bundle / "chat.json").write_text(json.dumps(catalogue))
    before = contents(built.root) + contents(bundle)
    command = json.loads(values("edge", "ENTRYPOINT")[0])
    arguments = [
        bundle if word == "/bundle" else word for word in json.loads(values("edge", "CMD")[0])
    ]
    # The address is one that needs the key; the port is whichever is free.
    environment = dict(pair.split("=", 1) for pair in shlex.split(values("edge", "ENV")[0]))
    path = built.here(environment["PATH"]).replace("$PATH", "/usr/bin:/bin")
    server = subprocess.Popen(
        [*command, bundle, *arguments[1:], "--port", "0"],
        executable=shutil.which(command[0], path=path),
        env=environment | {"PATH": path, "HOME": str(tmp_path), "RETORT_API_KEY": "k"},
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    try:
        port = server.stdout.readline().split("0.0.0.0:")[1].split("/")[0]
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": 8}
        assert httpx.post(url, json=body, timeout=120).status_code == 401
        allowed = {"Authorization": "Bearer k"}
        answer = httpx.post(url, json=body, headers=allowed, timeout=120).json()
    finally:
        server.terminate()
        server.wait(timeout=20)
    assert answer["model"] == NAME
    assert contents(built.root) + contents(bundle) == before
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def contents(folder: Path):
    return sorted((str(p), p.lstat().st_mtime_ns) for p in folder.rglob("*"))

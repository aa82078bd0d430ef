"""A laptop: an environment with the `serve` extra alone answers over HTTP, without torch."""

import json
import subprocess
import venv

import httpx

from serve.models import resolve_model
from tests.e2e.conftest import ROOT
from tests.e2e.serving import NAME, STUDENT, write_bundle

LIMIT_BYTES = 400e6


def size_bytes(folder):
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_symlink())


def test_the_serve_extra_alone_serves_a_bundle(tmp_path):
    laptop = tmp_path / "laptop"
    venv.create(laptop, with_pip=True)
    wheels = subprocess.run(
        ["make", "--silent", "wheels"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(
        [
            *(str(laptop / "bin/pip"), "install", "--quiet", "--no-cache-dir"),
            *("--find-links", wheels, "-c", str(ROOT / "constraints.txt"), f"{ROOT}[serve,cpu]"),
        ],
        check=True,
        timeout=600,
    )
    names = {p.name.lower().partition("-")[0] for p in (laptop / "lib").glob("*/site-packages/*")}
    assert {"llama_cpp", "onnxruntime_genai", "fastapi"} <= names
    assert not {"torch", "transformers", "gradio", "nvidia"} & names
    assert size_bytes(laptop) < LIMIT_BYTES

    bundle = write_bundle(tmp_path / "bundle")
    catalogue = json.loads((bundle / "chat.json").read_text())
    (bundle / "student.gguf").symlink_to(resolve_model(STUDENT.model, STUDENT.sha256))
    catalogue["speakers"][0]["model"] = "path:student.gguf"
    (bundle / "chat.json").write_text(json.dumps(catalogue))
    server = subprocess.Popen(
        [str(laptop / "bin/python"), "-m", "serve", str(bundle), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        url = server.stdout.readline().split(" at ")[1].split(" ")[0]
        body = {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": 8}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=120).json()
    finally:
        server.terminate()
        server.wait(timeout=20)
    assert answer["model"] == NAME
    assert answer["usage"]["completion_tokens"] > 0

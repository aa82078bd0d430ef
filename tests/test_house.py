"""The house rules that a reader relies on: who imports whom, how long, what is refused."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSES = ("serve", "quant", "pipeline", "apps")
MAY_IMPORT = {
    "serve": set(),
    "quant": {"serve"},
    "pipeline": {"serve", "quant"},
    "apps": {"serve"},
}
STAGES = {
    "problems",
    "collect",
    "general",
    "references",
    "curate",
    "examples",
    "sft",
    "on_policy",
    "quantize",
    "export",
    "evaluate",
    "gate",
    "bundle",
    "report",
}
FILE_LINES, FUNCTION_LINES, COLUMNS = 400, 60, 100
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
# Spelled in two halves so that this file does not contain what it forbids.
FORBIDDEN = ["pick" + "le", "torch." + "load(", "trust_remote" + "_code", "shell=" + "True"]
FORBIDDEN_CALLS = {"eval", "exec"}

SOURCES = [p for house in HOUSES for p in sorted((ROOT / house).rglob("*.py"))]
ALL = SOURCES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))


def names(paths):
    return [str(p.relative_to(ROOT)) for p in paths]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_arrows_point_one_way(path):
    house = path.relative_to(ROOT).parts[0]
    used = {name.partition(".")[0] for name in imports(path)} & set(HOUSES) - {house}
    assert used <= MAY_IMPORT[house]


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_never_imports_another_stage(stage):
    used = set(imports(ROOT / "pipeline" / f"{stage}.py"))
    assert not used & {f"pipeline.{other}" for other in STAGES - {stage}}


@pytest.mark.parametrize("path", ALL, ids=names(ALL))
def test_sizes(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= FILE_LINES
    assert path.stem not in VAGUE
    assert max(map(len, lines), default=0) <= COLUMNS
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", ALL, ids=names(ALL))
def test_no_foreign_code_runs(path):
    text = path.read_text()
    assert [word for word in FORBIDDEN if word in text] == []
    called = {
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & FORBIDDEN_CALLS


def test_serving_a_gguf_and_the_apps_need_no_torch():
    code = (
        "import sys, serve.engines.llama_cpp, serve.engines.llama_live, serve.engines.onnx, "
        "serve.worker, serve.server, serve.__main__, apps.conversation, apps.terminal; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n"


def test_readme_shows_the_current_help():
    readme = (ROOT / "README.md").read_text()
    for module in re.findall(r"<!-- help: (\S+) -->", readme):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={"COLUMNS": "80", "PATH": "/usr/bin:/bin"},
        )
        assert done.stdout.strip() in readme, module

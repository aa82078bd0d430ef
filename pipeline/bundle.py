"""Stage 10: what a laptop needs, in one folder that can be moved.

Reads the trained student, `06-gguf`, `07-onnx`, `09-gate`; writes the chosen GGUF and ONNX under
names other programs understand, `chat.json`, `Modelfile`, `README.md`, `NOTICE` and `SHA256SUMS`.
With nothing that passed the gate it writes a README that says so, and no model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.catalogue import student_entry
from pipeline.examine import artifact_rungs, final_checkpoint
from pipeline.gate_table import gate_cells
from pipeline.model_card import markdown_table
from pipeline.recipe import Recipe
from pipeline.run import Context
from pipeline.store import write_file, write_json
from quant.bundle import CHECKSUMS, checksums, modelfile, place, plain_modelfile
from serve.errors import DataError
from serve.reasoning import FORMS
from serve.template import template_of

STAGE_VERSION = 3
LIBRARIES = ()


def run(config: Recipe, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Fill the folder. Raises DiskError when it cannot be written."""
    gate = json.loads((inputs["09-gate"] / "gate.json").read_text(encoding="utf-8"))
    shutil.rmtree(out)
    out.mkdir()
    rungs = {r.path.name: r for r in artifact_rungs(inputs, config.asked_student, config.evaluate)}
    speakers: list[dict[str, Any]] = []
    for kind, choice in sorted(gate["chosen_by_format"].items()):
        if choice["file"] is None:
            continue
        rung = rungs[choice["file"]]
        name = rung.path.name.replace("student", config.run.name, 1)
        place(rung.path, out / name)
        speakers.append(student_entry(config.asked_student, rung, name))
        if kind == "GGUF":
            _write_modelfile(config, final_checkpoint(inputs), name, out, context)
    write_json(out / "chat.json", {"speakers": speakers})
    write_file(out / "NOTICE", _notice(config))
    for_ollama = (out / "Modelfile").exists()
    names = [s["name"] for s in speakers]
    write_file(out / "README.md", _readme(config, gate, names, for_ollama))
    write_file(out / CHECKSUMS, checksums(out))
    return {"models": [s["model"].removeprefix("path:") for s in speakers]}


def _write_modelfile(
    config: Recipe, checkpoint: Path, gguf: str, out: Path, context: Context
) -> None:
    template = template_of(checkpoint)
    try:
        text = modelfile(gguf, template, config.asked_student.system, [template.end_text])
    except DataError as error:
        context.log.warning("no Modelfile template: %s", error)
        text = plain_modelfile(gguf, config.asked_student.system, [template.end_text])
    write_file(out / "Modelfile", text)


def _notice(config: Recipe) -> str:
    return (
        "This student was trained from a base model on answers of a teacher model.\n"
        "The licences of both apply to it; keep this notice with the files.\n\n"
        f"base student  {config.student.model}\n              {config.student.license}\n"
        f"teacher       {config.teacher.model}\n              {config.teacher.license}\n"
    )


def _readme(config: Recipe, gate: dict[str, Any], names: list[str], for_ollama: bool) -> str:
    return f"""# {config.run.name}

{_held(config, names)}
{f"`ollama create {config.run.name} -f Modelfile` takes it into Ollama. " if for_ollama else ""}\
`sha256sum -c {CHECKSUMS}` checks the files.

Each file ran in its own runtime beside the unquantized student; a drop of up to
{gate["margin_points"]:g} points may be shipped, with an error of 5 % a file.

{markdown_table(*gate_cells(gate))}

Licences: NOTICE.
"""


def _held(config: Recipe, names: list[str]) -> str:
    if not names:
        return "Holds no model: nothing passed the gate.\n"
    tags = FORMS[config.student.tags]
    reasons = config.asked_student == config.student
    form = f"It thinks inside `{tags.opens}…{tags.closes}`, then writes" if reasons else "It writes"
    return f"""Holds {", ".join(names)}. {form} `Answer: …`.

    python -m apps.chat .     # in the browser
    python -m serve .         # for OpenAI's clients, at http://127.0.0.1:8000/v1
"""

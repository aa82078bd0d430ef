"""The folder a laptop runs: chosen files, checksums, and what other programs want to know of them.

Writes a Modelfile for Ollama and file names that LM Studio shows well. Never changes a model file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from serve.errors import DataError
from serve.messages import Message
from serve.models import file_sha256
from serve.template import ChatTemplate

CHECKSUMS = "SHA256SUMS"
PROBE = "\u2021content\u2021"
# Greedy, and without the penalty on what was said lately that Ollama has of its own: digits repeat.
AS_MEASURED = "PARAMETER temperature 0\nPARAMETER repeat_penalty 1"


def place(source: Path, target: Path) -> None:
    """The same bytes at `target`: a hard link where the disk allows it, else a copy."""
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        if path.is_file():
            to = target / path.relative_to(source) if source.is_dir() else target
            to.parent.mkdir(parents=True, exist_ok=True)
            to.unlink(missing_ok=True)
            try:
                os.link(path, to)
            except OSError:
                shutil.copyfile(path, to)


def checksums(folder: Path) -> str:
    """`sha256sum -c` lines for every file of the folder but the list itself."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    return "".join(f"{file_sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)


def modelfile(gguf: str, template: ChatTemplate, system: str, stops: Sequence[str]) -> str:
    """Ollama's Modelfile for a chat template that wraps every turn alike.

    Raises DataError for a template that does more: Ollama's own reading of the GGUF is then used.
    """
    stop = "\n".join(f'PARAMETER stop "{text}"' for text in stops)
    return (
        f'FROM ./{gguf}\nTEMPLATE """{go_template(template)}"""\n'
        f'SYSTEM """{system}"""\n{AS_MEASURED}\n{stop}\n'
    )


def plain_modelfile(gguf: str, system: str, stops: Sequence[str]) -> str:
    """The same where no template can be told: Ollama looks for one in the GGUF."""
    stop = "\n".join(f'PARAMETER stop "{text}"' for text in stops)
    return f'FROM ./{gguf}\nSYSTEM """{system}"""\n{AS_MEASURED}\n{stop}\n'


def go_template(template: ChatTemplate) -> str:
    """The Go template that renders what `template` renders, found by rendering.

    Turns must be wrapped alike, whatever stands before them, with the role's name inside the frame.
    """
    before, after = _frame(template, "user")
    for role in ("system", "assistant"):
        expected = (before.replace("user", role), after)
        if _frame(template, role) != expected:
            raise DataError(f"the chat template frames {role} turns in another way")
    opening = _opening(template)
    start = before.replace("user", "{{ .Role }}")
    return f"{{{{- range .Messages }}}}{start}{{{{ .Content }}}}{after}{{{{ end }}}}{opening}"


def rendered_go(go: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of a template of this one form: the test that it is right."""
    head, body = "{{- range .Messages }}", "{{ end }}"
    if not go.startswith(head) or go.count(body) != 1:
        raise DataError("not a template of the form written here")
    turn, opening = go[len(head) :].split(body)
    turns = [
        turn.replace("{{ .Role }}", m.role).replace("{{ .Content }}", m.content) for m in messages
    ]
    return "".join(turns) + opening


def _frame(template: ChatTemplate, role: str) -> tuple[str, str]:
    """What stands before and after the content of a turn.

    An assistant's turn is looked at with a question after it, as the past that it is when the model
    answers again: Qwen3's template writes the last one in another way.
    """
    system, user = Message(role="system", content="s"), Message(role="user", content="u")
    leads = {"system": [], "user": [system], "assistant": [system, user]}
    turn, lead = Message.model_validate({"role": role, "content": PROBE}), leads[role]
    base = template.render(lead, add_generation_prompt=False) if lead else ""
    after_it = [user] if role == "assistant" else []
    text = template.render([*lead, turn, *after_it], add_generation_prompt=False)
    if not text.startswith(base) or text.count(PROBE) != 1:
        raise DataError("the chat template does not write turns one after the other")
    before, _, after = text[len(base) :].partition(PROBE)
    if after_it:
        question = "u".join(_frame(template, "user"))
        if not after.endswith(question):
            raise DataError("the chat template does not write turns one after the other")
        after = after.removesuffix(question)
    return before, after


def _opening(template: ChatTemplate) -> str:
    """What is written last so that the model answers."""
    turns = [Message(role="system", content="s"), Message(role="user", content="u")]
    text = template.render(turns, add_generation_prompt=False)
    return template.render(turns).removeprefix(text)

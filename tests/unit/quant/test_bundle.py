"""What other programs read of a bundle says what the student was trained on."""

import hashlib
import os
import subprocess

import pytest

from quant.bundle import (
    CHECKSUMS,
    checksums,
    go_template,
    modelfile,
    place,
    plain_modelfile,
    rendered_go,
)
from quant.parity import conversations
from serve.errors import DataError
from serve.messages import Message
from serve.template import ChatTemplate

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe helpful<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Qwen3's way: an answer that nothing follows has a place for thoughts.
LAST_APART = CHATML.replace(
    "+ message['content'] +",
    "+ ('<think>\\n\\n</think>\\n\\n' if loop.last and message['role'] == 'assistant' else '')"
    " + message['content'] +",
)
# Mistral's way: no frame of its own for a system turn.
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)


def test_the_go_template_renders_what_the_chat_template_renders():
    template = ChatTemplate(CHATML)
    go = go_template(template)
    assert go == (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n"
    )
    asked = [c for c in conversations(["2 + 2 ="], "Think.", 60) if c[0].role == "system"]
    assert len(asked) > 30
    for messages in asked:
        assert rendered_go(go, messages) == template.render(messages)


def test_a_template_that_treats_the_last_answer_apart_is_told_by_those_before_it():
    template = ChatTemplate(LAST_APART)
    messages = [Message(role=r, content=c) for r, c in (("system", "s"), ("user", "2 + 2 ="))]
    more = [Message(role="assistant", content="4"), Message(role="user", content="And 3 + 3?")]
    assert "<think>" in template.render([*messages, more[0]], add_generation_prompt=False)
    for asked in (messages, [*messages, *more]):
        assert rendered_go(go_template(template), asked) == template.render(asked)


def test_a_template_of_another_form_is_refused():
    with pytest.raises(DataError, match="frames system turns in another way"):
        go_template(ChatTemplate(INSTRUCT))


def test_the_modelfile_names_file_template_system_and_stop():
    text = modelfile("default-Q8_0.gguf", ChatTemplate(CHATML), "Think.", ["<|im_end|>"])
    assert text.startswith('FROM ./default-Q8_0.gguf\nTEMPLATE """{{- range .Messages }}')
    assert text.endswith(
        'SYSTEM """Think."""\nPARAMETER temperature 0\nPARAMETER repeat_penalty 1\n'
        'PARAMETER stop "<|im_end|>"\n'
    )
    # Where the template cannot be told, all else is the same.
    head, _, rest = text.partition("TEMPLATE")
    without = head + rest[rest.index("SYSTEM") :]
    assert plain_modelfile("default-Q8_0.gguf", "Think.", ["<|im_end|>"]) == without


def test_files_and_folders_are_placed_with_the_same_bytes(tmp_path):
    (tmp_path / "one.gguf").write_bytes(b"weights")
    folder = tmp_path / "onnx"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "model.onnx").write_bytes(b"graph")
    place(tmp_path / "one.gguf", tmp_path / "bundle" / "student.gguf")
    place(folder, tmp_path / "bundle" / "student-int8")
    assert (tmp_path / "bundle" / "student.gguf").read_bytes() == b"weights"
    assert (tmp_path / "bundle" / "student-int8" / "deep" / "model.onnx").read_bytes() == b"graph"


def test_files_are_copied_where_links_are_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "one.gguf").write_bytes(b"weights")
    place(tmp_path / "one.gguf", tmp_path / "bundle" / "student.gguf")
    assert (tmp_path / "bundle" / "student.gguf").read_bytes() == b"weights"


def test_checksums_are_what_sha256sum_checks(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "deep" / "b.txt").write_text("b")
    text = checksums(tmp_path)
    assert text.splitlines()[1] == f"{hashlib.sha256(b'b').hexdigest()}  deep/b.txt"
    (tmp_path / CHECKSUMS).write_text(text)
    command = ["sha256sum", "--check", "--quiet", CHECKSUMS]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    (tmp_path / "a.txt").write_text("changed")
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "a.txt: FAILED\n")

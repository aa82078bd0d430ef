"""What `python -m serve` refuses before anyone asks, and with which exit code."""

import json
import subprocess
import sys

from serve.__main__ import main
from tests.e2e.conftest import ROOT
from tests.e2e.serving import write_bundle

NAME = "student"


def test_a_draft_with_nothing_to_guess_for_is_refused(tmp_path, capsys):
    assert main([str(write_bundle(tmp_path)), "--draft", NAME]) == 2
    assert capsys.readouterr().err == (
        f"error: --draft '{NAME}' has no other GGUF of those served to guess for\n"
    )


def test_a_model_that_the_folder_lacks_is_named(tmp_path, capsys):
    assert main([str(write_bundle(tmp_path)), "--models", NAME, "student Q4_O"]) == 2
    assert capsys.readouterr().err == (
        f"error: --models: no model 'student Q4_O'\nhint: there are '{NAME}'\n"
    )


def test_another_file_than_was_proven_has_its_own_exit_code(tmp_path):
    catalogue = write_bundle(tmp_path) / "chat.json"
    (entry,) = json.loads(catalogue.read_text())["speakers"]
    catalogue.write_text(json.dumps({"speakers": [entry | {"sha256": "0" * 64}]}))
    done = subprocess.run(
        [sys.executable, "-m", "serve", str(tmp_path), "--port", "0"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 8
    assert done.stderr.splitlines()[-1].startswith(f"error: {NAME} does not stay up: sha256 of ")
    assert str(tmp_path) not in done.stderr.splitlines()[-1]

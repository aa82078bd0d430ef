"""What the terminal refuses before it opens a model."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from apps.terminal import Talk, main
from serve.conversations import Ask


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--temperature", "5", "5.0: Input should be less than or equal to 2"),
        ("--seed", "-1", "-1: Input should be greater than or equal to 0"),
        ("--max-tokens", "0", "0: Input should be greater than or equal to 1"),
        ("--thinking-budget", "-3", "-3: Input should be greater than or equal to 0"),
    ],
)
def test_a_number_out_of_its_bounds_is_one_line(option, value, told, tmp_path, capsys):
    assert main([str(tmp_path), option, value]) == 2
    assert capsys.readouterr().err == f"error: {option} {told}\n"


def test_what_a_model_writes_does_not_steer_the_terminal():
    written, pool = io.StringIO(), SimpleNamespace(entries={})
    talk = Talk(Console(file=written, force_terminal=True), pool, Ask(), fold=False)
    talk._print("a\x1b[2Jb\x9b31mc\rd\n\te", "")
    assert written.getvalue().expandtabs() == "a[2Jb31mcd\n        e"

"""What is said when somebody else's program fails."""

import sys

import pytest

from quant.tool import run_tool
from serve.errors import EngineError


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise ValueError('no such model\\n\\nYou can upgrade.')", "1: ValueError: no such model"),
        ("import sys; sys.exit('out of room\\nfile 3')", "1: file 3"),
        ("import sys; sys.exit(4)", "4: no message"),
    ],
)
def test_the_reason_is_the_exception_or_else_the_last_line(program, said):
    with pytest.raises(EngineError) as failed:
        run_tool("the tool", [sys.executable, "-c", program])
    assert str(failed.value) == f"the tool ended with {said}"


def test_a_program_that_writes_nothing_or_takes_too_long_has_failed(tmp_path):
    with pytest.raises(EngineError, match=r"^the tool ended with 0: no message$"):
        run_tool("the tool", [sys.executable, "-c", ""], writes=tmp_path / "model.onnx")
    with pytest.raises(EngineError, match=r"^the tool took over 0\.2 s$"):
        run_tool("the tool", [sys.executable, "-c", "import time; time.sleep(9)"], timeout_s=0.2)

"""The end of a run on the terminal: its tables, its choice, and its exit code."""

import json

import pytest

from pipeline.report import print_results
from tests.unit.pipeline.test_gate import REFUSED, ROW

LADDER = {
    "k": 4,
    "items": 300,
    "rows": [
        {
            "name": "SFT student",
            "size_bytes": 269_000_000,
            "accuracy": 0.5,
            "interval": [0.44, 0.56],
            "against_base": {"difference": 0.42, "p_value": 1e-9},
            "pass_at": {"1": 0.4, "4": 0.6},
            "format_failures": 1,
            "truncated": 2,
            "mean_tokens": 51.6,
        }
    ],
}
COSTS = [
    {
        "step": "practice (aligned)",
        "student_tokens": 70_000,
        "teacher_tokens": 20_000,
        "operations": 1.5e15,
        "took_s": 300.0,
        "device": "a processor, 2 cores",
        "energy_j": None,
        "gained": {"items": 300, "difference": 0.06, "interval": [0.02, 0.1], "p_value": 0.004},
        "points_per_1e15": 4.0,
        "points_per_minute": 1.2,
    }
]
FAILED = {**ROW, "verdict": {**ROW["verdict"], "outcome": "fail"}}
UNDECIDED = {**ROW, "verdict": {**ROW["verdict"], "outcome": "inconclusive"}}


@pytest.mark.parametrize(
    ("rows", "name", "code"),
    [
        ([ROW, FAILED], "GGUF Q4_K_M", 0),
        ([FAILED, REFUSED], None, 7),
        ([REFUSED], None, 7),
        ([FAILED, UNDECIDED], None, 9),
    ],
)
def test_the_exit_code_says_whether_there_is_something_to_ship(tmp_path, capsys, rows, name, code):
    file = "student-Q4_K_M.gguf" if name else None
    gate = {
        "rows": rows,
        "margin_points": 3.0,
        "reference": "SFT student",
        "chosen": {"name": name, "file": file, "why": "the smallest of 1 that pass"},
    }
    for folder, content in (("08-evaluate/ladder", LADDER), ("09-gate/gate", gate)):
        path = tmp_path / f"{folder}.json"
        path.parent.mkdir()
        path.write_text(json.dumps(content))
    (tmp_path / "ledger.json").write_text(json.dumps(COSTS))
    assert print_results(tmp_path) == code
    text = capsys.readouterr().out
    assert "50.0 [44, 56]" in text
    assert "+6.0 [+2.0, +10.0]" in text
    assert f"chosen: {file or 'none'}: the smallest of 1 that pass" in text
    assert all(len(line) <= 130 for line in text.splitlines())

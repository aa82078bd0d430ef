"""The gate's later looks, the held-out traces it measures along, and its table."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline import gate
from pipeline.examine import ON_POLICY, SFT, ArtifactRung
from pipeline.gate_table import gate_cells, reasons
from pipeline.held_out import held_out_traces
from pipeline.ladder import Judged
from pipeline.recipe import EvaluateOptions, GateOptions, StudentOptions
from pipeline.records import Problem, Verdict
from pipeline.store import write_records
from quant.stats import paired
from serve.messages import Completion

STUDENT = StudentOptions(model="path:unused", system="s")


def judged(rung: str, item: str, passed: bool | None, text: str = "x") -> Judged:
    return Judged(
        rung=rung,
        item=item,
        family="f",
        sample=0,
        completion=Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=2),
        verdict=Verdict(passed=passed, reason="correct", extracted="4", verifier="v"),
    )


def problem(number: int) -> Problem:
    return Problem(question=f"{number} + 1 =", answer=str(number + 1), family="f")


def rung(name: str) -> ArtifactRung:
    return ArtifactRung(
        name, name, 1, None, None, open_alone=None, path=Path(f"{name}.gguf"), engine="llama.cpp"
    )


@pytest.fixture
def inputs(tmp_path):
    """300 answers: A equals the student, B lost 10 and gained 4: open at a margin of 3 points."""
    first = [judged(SFT, str(i), True) for i in range(290)]
    first += [judged(SFT, str(i), False) for i in range(290, 300)]
    for name, flips in (("A", set()), ("B", {*range(10), *range(290, 294)})):
        first += [judged(name, str(i), (i < 290) != (i in flips)) for i in range(300)]
    write_records(tmp_path / "08-evaluate" / "answers.jsonl", first)
    more = [problem(i) for i in range(600)]
    write_records(tmp_path / "01-problems" / "gate.jsonl", more)
    return {name: tmp_path / name for name in ("01-problems", "04-sft", "08-evaluate")}


def verdicts(inputs, monkeypatch, lost_of_300: int):
    asked = []

    def answer(rung, problems, options, *_):
        asked.append((rung.name, len(problems), options.k_items))
        lost = 0 if rung.name == SFT else lost_of_300
        return [judged(rung.name, p.key, n >= lost) for n, p in enumerate(problems)]

    monkeypatch.setattr(gate, "examine", answer)
    monkeypatch.setattr(gate, "checkpoint_rung", lambda *_: replace(rung(SFT), name=SFT))
    config = (STUDENT, EvaluateOptions(), GateOptions())
    found, more, gain = gate._verdicts(config, [rung("A"), rung("B")], inputs, Path(), None)
    assert gain is None
    return found, more, asked


def test_only_what_is_open_is_asked_more(inputs, monkeypatch):
    found, more, asked = verdicts(inputs, monkeypatch, 1)
    assert asked == [(SFT, 300, 0), ("B", 300, 0)]
    assert len(more) == 600
    assert (found["A"].items, found["A"].outcome) == (300, "pass")
    assert (found["B"].items, found["B"].outcome) == (600, "pass")
    assert found["B"].difference == pytest.approx((4 - 10 - 1) / 600)


def test_what_stays_open_is_asked_again(inputs, monkeypatch):
    found, more, asked = verdicts(inputs, monkeypatch, 4)
    assert [name for name, *_ in asked] == [SFT, "B", SFT, "B"]
    assert len(more) == 1200
    assert (found["B"].items, found["B"].outcome) == (900, "pass")
    assert found["B"].difference == pytest.approx((4 - 10 - 8) / 900)


def test_many_more_items_are_asked_in_four_steps(inputs, monkeypatch):
    more = [problem(i) for i in range(3000)]
    write_records(inputs["01-problems"] / "gate.jsonl", more)
    found, _, asked = verdicts(inputs, monkeypatch, 0)
    assert asked == [(SFT, 750, 0), ("B", 750, 0)]
    assert (found["B"].items, found["B"].outcome) == (1050, "pass")


def test_a_certain_fall_is_not_asked_about_again(inputs, monkeypatch):
    found, _, asked = verdicts(inputs, monkeypatch, 60)
    assert (found["B"].outcome, found["B"].lost, len(asked)) == ("fail", 70, 2)


def test_without_more_items_it_stays_open(inputs, monkeypatch):
    (inputs["01-problems"] / "gate.jsonl").write_text("")
    found, more, asked = verdicts(inputs, monkeypatch, 0)
    assert (found["B"].outcome, more, asked) == ("inconclusive", [], [])


def gain_after(folder, monkeypatch, flips: tuple[int, int], later: tuple[int, int]):
    """Practice gained and lost so many of 300 items, and of each 300 more; its one file equals it.

    Returns what is said of it, and who was asked how many items more.
    """
    first = [judged(SFT, str(i), i < 150) for i in range(300)]
    for name in (ON_POLICY, "A"):
        first += [judged(name, str(i), flips[1] <= i < 150 + flips[0]) for i in range(300)]
    write_records(folder / "08-evaluate" / "answers.jsonl", first)
    write_records(folder / "01-problems" / "gate.jsonl", [problem(i) for i in range(600)])
    asked = []

    def answer(rung, problems, options, *_):
        asked.append((rung.name, len(problems)))
        low, high = (0, 150) if rung.name == SFT else (later[1], 150 + later[0])
        return [judged(rung.name, p.key, low <= n < high) for n, p in enumerate(problems)]

    monkeypatch.setattr(gate, "examine", answer)
    names = {"04-sft": SFT, "05-on-policy": ON_POLICY}
    monkeypatch.setattr(gate, "checkpoint_rung", lambda path, *_: rung(names[path.name]))
    folders = ("01-problems", "04-sft", "05-on-policy", "08-evaluate")
    inputs = {name: folder / name for name in folders}
    config = (STUDENT, EvaluateOptions(), GateOptions())
    verdicts, more, gain = gate._verdicts(config, [rung("A")], inputs, Path(), None)
    assert (verdicts["A"].outcome, len(more)) == ("pass", sum(n for _, n in asked))
    return gain, asked


def test_a_gain_of_practice_that_is_plain_is_not_asked_about_again(tmp_path, monkeypatch):
    gain, asked = gain_after(tmp_path, monkeypatch, (30, 5), (0, 0))
    assert asked == []
    assert (gain["items"], gain["gained"], gain["lost"]) == (300, 30, 5)
    assert gain["interval"][0] > 0


def test_what_practice_gained_is_asked_until_chance_does_not_explain_it(tmp_path, monkeypatch):
    gain, asked = gain_after(tmp_path, monkeypatch, (20, 10), (30, 5))
    assert asked == [(ON_POLICY, 300), (SFT, 300)]
    assert (gain["items"], gain["difference"]) == (600, pytest.approx(35 / 600))
    # Wider than the usual one: it is the second of three looks.
    usual = paired([False] * 50 + [True] * 550, [True] * 50 + [False] * 15 + [True] * 535)
    assert 0 < gain["interval"][0] < usual.interval.low
    assert gain["interval"][1] > usual.interval.high


def test_a_gain_that_stays_open_is_said_with_all_that_was_asked(tmp_path, monkeypatch):
    gain, asked = gain_after(tmp_path, monkeypatch, (20, 15), (20, 15))
    assert asked == [(ON_POLICY, 300), (SFT, 300)] * 2
    assert (gain["items"], gain["gained"], gain["lost"]) == (900, 60, 45)
    assert gain["interval"][0] < 0 < gain["interval"][1]


def test_kept_cases_are_asked_once_each_and_a_lost_one_fails(inputs, monkeypatch):
    found, *_ = verdicts(inputs, monkeypatch, 0)
    cases = [problem(1), problem(2), problem(1)]
    write_records(inputs["08-evaluate"] / "regressions.jsonl", cases)
    asked = []

    def answer(rung, problems, options, *_):
        asked.append((rung.name, len(problems), options.k_items))
        wrong = problem(2).key if rung.name == "B" else ""
        return [judged(rung.name, p.key, p.key != wrong) for p in problems]

    monkeypatch.setattr(gate, "examine", answer)
    kept = {**inputs, "regressions.jsonl": inputs["08-evaluate"] / "regressions.jsonl"}
    config = (STUDENT, EvaluateOptions(), GateOptions())
    after = gate._on_regression_cases(config, [rung("A"), rung("B")], kept, Path(), None, found)
    assert asked == [(SFT, 2, 0), ("A", 2, 0), ("B", 2, 0)]
    assert [after["A"].outcome, after["B"].outcome] == ["pass", "fail"]
    assert after["B"].why.startswith(f"lost 1 of 2 regression cases ({problem(2).key[:12]}); ")


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    letters = [chr(c) for c in range(32, 127)] + ["\n"]
    raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token=" "))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=raw)
    made.chat_template = TEMPLATE
    return made


def test_held_out_tokens_know_what_they_are():
    problems = {"a": problem(3), "b": problem(4)}
    answers = [
        judged("teacher", "b", False, "wrong"),
        judged("teacher", "a", True, "3 + 1\nAnswer: 4"),
    ]
    (trace,) = held_out_traces(answers, problems, STUDENT, tokenizer(), 1000)
    text = "".join(tokenizer().convert_ids_to_tokens(trace.ids))
    assert text[: trace.first] == "<system>s<end><user>3 + 1 =<end><assistant>"
    assert text[trace.first : trace.last] == "<think>\n3 + 1\n</think>\nAnswer: 4"
    assert text[trace.last :] == "<end>"
    kinds = {
        name: "".join(c for c, flag in zip(text[trace.first :], flags, strict=True) if flag)
        for name, flags in trace.kinds.items()
    }
    assert kinds == {
        "reasoning": "<think>\n3 + 1\n",
        "answer": "</think>\nAnswer: 4<end>",
        "number": "314",
    }


def test_held_out_traces_end_at_the_wanted_tokens():
    problems = {str(i): problem(i) for i in range(9)}
    answers = [judged("teacher", str(i), True, f"{i} + 1\nAnswer: {i + 1}") for i in range(9)]
    assert len(held_out_traces(answers, problems, STUDENT, tokenizer(), 60)) == 2


ROW = {
    "name": "GGUF Q4_K_M",
    "file": "student-Q4_K_M.gguf",
    "size_bytes": 105_000_000,
    "proof": {
        "fault": None,
        "inspection": {"bits_per_weight": 6.267, "warnings": ["Q4_K_M in name only"]},
        "divergence": {
            "all": {"mean_nats": 0.0213, "p99_nats": 0.31, "top1_share": 0.951},
            "number": {"mean_nats": 0.03, "p99_nats": 0.4, "top1_share": 0.94},
        },
        "speed": {"tokens_per_s": 99.6, "first_token_s": 0.041, "peak_memory_bytes": 312_000_000},
    },
    "verdict": {
        "outcome": "pass",
        "why": "-0.3 points [-2.1, 1.4]: within 3 points",
        "accuracy": 0.46,
        "difference": -0.003,
        "low": -0.021,
        "high": 0.014,
        "gained": 11,
        "lost": 12,
    },
}
REFUSED = {
    **ROW,
    "name": "GGUF Q2_K",
    "verdict": None,
    "proof": {
        "fault": "run: the process died",
        "inspection": None,
        "divergence": None,
        "speed": None,
    },
}


def test_the_table_has_a_row_an_artifact_and_a_line_a_reason():
    data = {"rows": [ROW, REFUSED], "chosen": {"name": "GGUF Q4_K_M"}}
    head, cells = gate_cells(data)
    assert dict(zip(head, cells[0], strict=True)) == {
        "artifact": "GGUF Q4_K_M",
        "MB": "105",
        "bits": "6.27",
        "KL nats": "0.0213",
        "p99": "0.310",
        "top-1": "95.1",
        "KL numbers": "0.0300",
        "accuracy": "46.0",
        "difference": "-0.3 [-2.1, 1.4]",
        "flips": "+11 -12",
        "tok/s": "100",
        "first ms": "41",
        "RAM MB": "312",
        "verdict": "pass, chosen",
    }
    assert cells[1] == ["GGUF Q2_K", "105", *[""] * 11, "refused"]
    short, _ = gate_cells(data, brief=True)
    assert set(head) - set(short) == {"p99", "KL numbers", "first ms", "RAM MB"}
    assert reasons(data) == [
        "GGUF Q4_K_M: -0.3 points [-2.1, 1.4]: within 3 points",
        "GGUF Q4_K_M: Q4_K_M in name only",
        "GGUF Q2_K: run: the process died",
    ]

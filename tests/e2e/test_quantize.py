"""The files of a real run: what they hold, that their importance matrix is llama.cpp's, and that a
damaged one is caught by the step that is there for it."""

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.calibration import calibration_sequences
from pipeline.prompts import student_messages
from pipeline.tasks.gym import family_problems
from pipeline.tasks.judge import Judge
from quant import imatrix
from quant.gate import paired_verdict
from quant.gguf import Encoding, quantize
from quant.gguf_reader import values_of
from quant.inspect import inspect_gguf
from quant.proof import prove
from quant.sensitivity import weighted_error
from serve.engines import load_engine
from serve.engines.child import load_in_child
from serve.errors import UntrustedFile
from serve.messages import Request, Sampling
from serve.models import file_sha256, resolve_model
from tests.e2e.proving import RECIPE, proof


@pytest.fixture(scope="module")
def full(smoke) -> Path:
    return smoke.root / "06-gguf" / "student-F16.gguf"


@pytest.fixture(scope="module")
def matrix(smoke) -> Path:
    return smoke.root / "06-gguf" / "imatrix.gguf"


def test_the_importance_matrix_is_the_one_llama_cpp_computes(smoke, full, tmp_path):
    checkpoint = smoke.root / "04-sft"
    sequences = calibration_sequences(checkpoint, 400)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ours = imatrix.collect(model, sequences, "llama", "kept traces").mean_squares
    (tmp_path / "ids.json").write_text(json.dumps(sequences))
    script = Path(__file__).parent / "llama_activations.py"
    out = tmp_path / "theirs.npz"
    subprocess.run(
        [sys.executable, str(script), str(full), str(tmp_path / "ids.json"), str(out)],
        check=True,
        capture_output=True,
    )
    theirs = np.load(out)
    assert len(theirs.files) == 30 * 7
    for name in theirs.files:
        error = np.abs(ours[name] - theirs[name]).sum() / theirs[name].sum()
        assert error < 0.005, name


def test_the_files_say_where_their_importance_matrix_is_from(smoke, matrix):
    for kind in ("Q8_0", "Q4_K_M"):
        found = inspect_gguf(smoke.root / "06-gguf" / f"student-{kind}.gguf").metadata
        assert found["retort.imatrix.sha256"] == file_sha256(matrix)
        assert found["retort.imatrix.tokens"] == imatrix.read(matrix).tokens >= 1024
        assert found["quantize.imatrix.dataset"] == "own texts, chat template applied"


def test_a_matrix_of_its_own_traces_spares_the_columns_that_are_used(full, matrix, tmp_path):
    plain, guided = tmp_path / "plain-Q4_0.gguf", tmp_path / "guided-Q4_0.gguf"
    quantize(full, plain, Encoding(file_type="Q4_0"), 2)
    quantize(full, guided, Encoding(file_type="Q4_0", imatrix=matrix), 2)
    used = imatrix.read(matrix).mean_squares
    exact, *written = (
        {t.name: values_of(t) for t in gguf.GGUFReader(path).tensors if t.name in used}
        for path in (full, plain, guided)
    )
    names = [name for name in used if "attn_q" in name or "ffn_up" in name]
    assert len(names) == 60
    errors = [sum(weighted_error(exact[n], file[n], used[n]) for n in names) for file in written]
    assert errors[1] < 0.9 * errors[0]


def test_a_file_rounded_on_kept_traces_is_nearer_than_llama_cpps_own(
    smoke, full, reference, tmp_path
):
    ours, plain = smoke.root / "06-gguf" / "student-Q4_K_M.gguf", tmp_path / "plain.gguf"
    quantize(full, plain, Encoding(file_type="Q4_K_M"), 2)
    assert ours.stat().st_size == pytest.approx(plain.stat().st_size, rel=0.01)
    nats = [proof(path, reference).divergence["all"].mean_nats for path in (ours, plain)]
    assert nats[0] < 0.5 * nats[1]
    assert inspect_gguf(ours).metadata["retort.gptq.tokens"] == 1024
    fine = smoke.root / "06-gguf" / "student-Q8_0.gguf"
    assert inspect_gguf(fine).metadata["retort.gptq.tokens"] == 0


def test_the_f16_file_computes_what_the_checkpoint_computes(full, reference):
    found = proof(full, reference, exact=True)
    assert found.fault is None
    assert found.parity.conversations == 60
    assert found.divergence["all"].top1_share > 0.98
    assert found.divergence["number"].tokens > 100
    assert found.speed.peak_memory_bytes > full.stat().st_size


def test_a_label_that_lies_is_warned_about(smoke):
    found = inspect_gguf(smoke.root / "06-gguf" / "student-Q4_K_M.gguf")
    assert found.warnings[0].startswith("Q4_K_M in name only: ")
    assert found.bits_per_weight > 6


def swapped_template(path: Path) -> None:
    """One word of the chat template, spelled otherwise."""
    raw = path.read_bytes()
    assert raw.count(b"<|im_start|>assistant") >= 1
    path.write_bytes(raw.replace(b"<|im_start|>assistant", b"<|im_start|>assisdant"))


def wrong_end_token(path: Path) -> None:
    """The equals sign ends answers."""
    reader = gguf.GGUFReader(path, "r+")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    reader.fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = tokens.index("Ġ=")
    reader.data.flush()


def scrambled_tensor(path: Path) -> None:
    """The rows of one matrix of thirty, backwards."""
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.12.ffn_down.weight")
    tensor.data[:] = tensor.data[::-1].copy()
    reader.data.flush()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def every_scale_lost(path: Path) -> None:
    """All matrices of the layers in zeros: a file that loads and says nothing."""
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            tensor.data[:] = 0
    reader.data.flush()


@pytest.mark.parametrize(
    ("damage", "exact", "fault"),
    [
        (swapped_template, False, r"parity: conversation 0, token \d+: student \[.*artifact \["),
        (wrong_end_token, False, r"parity: token \d+ ends the artifact inside the student's"),
        (scrambled_tensor, True, r"parity: an unquantized file is \d\.\d+ nats from the student"),
        (every_scale_lost, False, r"divergence: \d+\.\d+ nats from the student, limit 1\.0"),
        (cut, False, r"inspect: student-F16\.gguf is not a whole GGUF"),
    ],
)
def test_a_damaged_file_is_refused_by_the_step_that_is_there_for_it(
    full, reference, tmp_path, damage, exact, fault
):
    path = tmp_path / full.name
    shutil.copy(full, path)
    damage(path)
    found = proof(path, reference, exact)
    assert found.fault is not None
    assert re.match(fault, found.fault), found.fault


def test_two_bits_a_weight_are_failed_by_the_gate(smoke, full, tmp_path):
    """Where rows are too short for Q2_K, llama.cpp itself falls back to Q4_0.

    What the student answers counts as right: a smoke student knows too little to lose any of it.
    """
    path = tmp_path / "student-Q2_K.gguf"
    encoding = Encoding(file_type="Q2_K", overrides=((r"ffn_down", "Q2_K"),))
    quantize(full, path, encoding, 2)
    assert inspect_gguf(path).shares == {"Q4_0": 0.75, "Q2_K": 0.25}
    assert inspect_gguf(path).warnings[0].startswith("Q2_K in name only: 75 % Q4_0, 25 % Q2_K;")
    sums = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    problems = {p.key: p for p in family_problems("chain_sum", sums, seed=5, size=60)}
    asked = [
        Request(
            key=key,
            messages=student_messages(RECIPE.student, problem.question),
            sampling=Sampling(max_tokens=40),
        )
        for key, problem in problems.items()
    ]

    def answers(engine) -> dict[str, str | None]:
        with closing(engine), Judge() as judge:
            said = engine.generate(asked)
            return {key: judge.verdict(problems[key], text).extracted for key, text in said}

    student = answers(load_engine("transformers", path=smoke.root / "04-sft", slots=64))
    low = answers(load_in_child("llama.cpp", path=path, slots=16, context_tokens=256))
    kept = {key: low[key] == answer for key, answer in student.items() if answer is not None}
    assert len(kept) >= 40
    right, families = dict.fromkeys(kept, True), dict.fromkeys(kept, "sums")
    verdict = paired_verdict(path.name, right, kept, families, margin=0.03)
    assert (verdict.outcome, verdict.unscored) == ("fail", 0)
    assert verdict.high < -0.1


def test_a_flipped_bit_is_refused_before_the_file_is_opened(full, tmp_path):
    path = tmp_path / full.name
    sha256 = file_sha256(full)
    raw = bytearray(full.read_bytes())
    raw[-1000] ^= 1
    path.write_bytes(raw)
    assert inspect_gguf(path).file == full.name  # it looks sound
    with pytest.raises(UntrustedFile, match=r"student-F16\.gguf"):
        resolve_model(f"path:{path}", sha256)


def test_a_child_that_dies_fails_its_artifact_by_name(full, reference):
    def dying():
        child = load_in_child("llama.cpp", path=full, slots=4, context_tokens=1024)
        child._child.send_signal(signal.SIGSEGV)
        return child

    found = prove(full, dying, reference, False)
    assert re.match(r"run: the process of engine .*student-F16\.gguf ended with", found.fault)


def test_a_child_that_hangs_fails_its_artifact_by_name(full, reference):
    def hanging():
        child = load_in_child("llama.cpp", path=full, slots=4, context_tokens=1024)
        child._silence_limit_s = 2.0
        child._child.send_signal(signal.SIGSTOP)
        return child

    found = prove(full, hanging, reference, False)
    assert re.match(r"run: the process of .*student-F16\.gguf gave no sign for 2 s", found.fault)

"""What method exact learns from: attempts in their order, SFT's examples between them."""

import logging

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.exact import refine_exact
from pipeline.exact_attempts import ExactSampler, Practice, planned_steps, trace_rows, with_traces
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.recipe import StudentOptions
from pipeline.records import Problem
from pipeline.run import Context
from pipeline.supervise import example_of
from serve.engines.transformers import TransformersEngine
from tests.unit.pipeline.tiny import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
STUDENT = StudentOptions(model="path:unused", system="s")
OPTIONS = OnPolicyOptions(
    blocks=2, block_attempts=5, batch_lessons=4, max_tokens=12, temperature=1.0, replay=2
)
PROBLEMS = [Problem(question=f"{i} + 1 =", answer=str(i + 1), family="f") for i in range(4)]
EXAMPLES = [example_of(f"key {i}", p, f"{i}+1", p.answer, STUDENT) for i, p in enumerate(PROBLEMS)]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("student"), 0)


@pytest.fixture(scope="module")
def tokens(student):
    return AutoTokenizer.from_pretrained(student)


def test_a_block_replays_as_many_traces_as_are_wanted_and_leaves_the_attempts_alone(tokens):
    traces = trace_rows(EXAMPLES, tokens)
    mixed = Practice(PROBLEMS, STUDENT, OPTIONS, 1, traces)
    # Five attempts and two traces are two updates of four rows: eight rows, six of them attempts.
    assert (planned_steps(OPTIONS), len(mixed)) == (4, 16)
    blocks = [[mixed[i] for i in range(start, start + 8)] for start in (0, 8)]
    for block in blocks:
        assert sum("said" in row for row in block) == 2
        chosen = [traces.index(row) for row in block if "said" in row]
        assert len(set(chosen)) == 2
    attempts = [row for block in blocks for row in block if "said" not in row]
    alone = Practice(PROBLEMS, STUDENT, OPTIONS, 1)
    assert attempts == [alone[i] for i in range(12)]
    assert [row["key"] for row in attempts] == [str(i) for i in range(12)]
    assert [mixed[i] for i in range(16)] == blocks[0] + blocks[1]


def test_there_are_no_more_replays_than_traces():
    many = OPTIONS.model_copy(update={"replay": 64})
    assert with_traces(many, EXAMPLES).replay == 4
    assert with_traces(many, ()).replay == 0
    assert len(Practice(PROBLEMS, STUDENT, many, 1)) == 2 * 8


def test_a_replayed_row_says_the_trace_to_its_end_token(student, tokens):
    (row, *_) = trace_rows(EXAMPLES, tokens)
    # The tokenizer knows no line break.
    assert "".join(tokens.convert_ids_to_tokens(row["said"])) == (
        "<think><unk>0+1<unk></think><unk>Answer: 1" + tokens.eos_token
    )
    model = AutoModelForCausalLM.from_pretrained(student)
    sampler = ExactSampler(TransformersEngine(model, tokens, "tiny", 4, 512), OPTIONS)
    attempt = Practice(PROBLEMS, STUDENT, OPTIONS, 1)[0]
    drawn = sampler.draw(model, [row, attempt])
    said, own = drawn["completion_mask"].sum(1).tolist()
    assert said == len(row["said"])
    assert drawn["completion_ids"][0, :said].tolist() == row["said"]
    assert sampler.drawn_tokens == own > 0
    assert sampler.draw(model, [row])["completion_ids"].tolist() == [row["said"]]
    assert sampler.drawn_tokens == 0


def test_a_practice_with_traces_learns_from_both(student, tmp_path):
    context = Context(seed=1, progress=Progress(), log=logging.getLogger("test"))
    teacher = checkpoint(tmp_path / "teacher", 1, width=64)
    rows = refine_exact(
        student, teacher, PROBLEMS, STUDENT, OPTIONS, tmp_path, context, (), EXAMPLES
    )
    assert len(rows) == 4
    said = sum(row["learnt_tokens"] - row["attempt_tokens"] for row in rows)
    mixed = Practice(
        PROBLEMS, STUDENT, OPTIONS, 1, trace_rows(EXAMPLES, AutoTokenizer.from_pretrained(student))
    )
    assert said == sum(len(mixed[i].get("said", ())) for i in range(16)) > 0

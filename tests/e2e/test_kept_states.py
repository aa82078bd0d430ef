"""Worked examples are read once on a machine: another process takes them up, and says the same."""

import os

import pytest

from serve.engines import kept_states
from serve.engines.llama_cpp import load
from serve.messages import Message, Request, Sampling
from serve.models import resolve_model
from tests.e2e.serving import STUDENT, apart

BASE = resolve_model(STUDENT.model, STUDENT.sha256)
EXAMPLES = [
    [
        Message(role="system", content=f"Count on, as in these examples of {name}."),
        Message(role="user", content=f"Go on: {first}, {first + 1}, {first + 2}"),
        Message(role="assistant", content=", ".join(str(first + i) for i in range(3, 40))),
    ]
    for name, first in (("one", 100), ("two", 5000))
]


def answered(cache, worth_s=0.0, kept_bytes=2**30, model=BASE):
    """(texts, logits after each prompt, tokens read) of an engine that begins with `cache`."""
    os.environ["RETORT_CACHE"] = str(cache)
    kept_states.WORTH_S, kept_states.KEPT_BYTES = worth_s, kept_bytes
    engine = load(model, 4, 512, 1)
    decode, read = engine.model.decode, []
    engine.model.decode = lambda rows: (read.append(len(rows)), decode(rows))
    texts, logits = [], []
    for lead in EXAMPLES:
        question = Message(role="user", content="Go on: 7, 8, 9")
        request = Request(key="q", messages=(*lead, question), sampling=Sampling(max_tokens=8))
        texts += [completion.text for _, completion in engine.generate([request])]
        logits.append(engine._prompt_read[1].tobytes())
    engine.close()
    return texts, logits, sum(read)


def states(cache):
    return sorted((cache / "prefixes").glob("*.state"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return cache, apart(answered, cache)


def test_another_process_reads_none_of_it_and_says_the_same_bit_for_bit(first):
    cache, (texts, logits, read) = first
    assert len(states(cache)) == 2
    again, same_logits, fewer = apart(answered, cache)
    assert (again, same_logits) == (texts, logits)
    lead_tokens = apart(lead_lengths)
    assert min(lead_tokens) > 150
    assert read - fewer == sum(lead_tokens)


def lead_lengths():
    engine = load(BASE, 4, 512, 1)
    question = Message(role="user", content="?")
    lengths = [len(engine._prompts.cut((*lead, question)).shared) for lead in EXAMPLES]
    engine.close()
    return lengths


def test_a_damaged_state_is_read_again_and_mended(first, tmp_path):
    cache, (texts, logits, read) = first
    (tmp_path / "prefixes").mkdir()
    for state in states(cache):
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "prefixes" / state.name).write_bytes(content)
    assert apart(answered, tmp_path) == (texts, logits, read)
    assert [s.read_bytes() for s in states(tmp_path)] == [s.read_bytes() for s in states(cache)]


def test_a_state_cut_short_is_read_again(first, tmp_path):
    cache, expected = first
    (tmp_path / "prefixes").mkdir()
    for state in states(cache):
        (tmp_path / "prefixes" / state.name).write_bytes(state.read_bytes()[:40])
    assert apart(answered, tmp_path) == expected


def test_what_is_read_at_once_is_not_kept(first, tmp_path):
    _, expected = first
    assert apart(answered, tmp_path, 60.0) == expected
    assert not (tmp_path / "prefixes").exists()


def test_what_was_unused_longest_makes_room(first, tmp_path):
    cache, expected = first
    one = max(state.stat().st_size for state in states(cache))
    assert apart(answered, tmp_path, 0.0, one) == expected
    newest = max(states(cache), key=lambda state: state.stat().st_mtime_ns)
    assert [state.name for state in states(tmp_path)] == [newest.name]


def test_a_cache_that_cannot_be_written_costs_time_only(first, tmp_path):
    _, expected = first
    (tmp_path / "prefixes").write_text("in the way")
    assert apart(answered, tmp_path) == expected


def test_another_file_of_the_same_name_finds_nothing(first, tmp_path):
    cache, (_, _, read) = first
    model = tmp_path / BASE.name
    model.write_bytes(BASE.read_bytes())
    assert apart(answered, cache, 60.0, 2**30, model)[2] == read

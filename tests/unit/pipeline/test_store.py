from contextlib import closing

import pytest

from pipeline.kept_answers import Answer, KeptAnswers
from pipeline.store import (
    AppendLog,
    placed_records,
    read_records,
    record_at,
    record_line,
    write_file,
)
from serve.errors import DataError, DiskError
from serve.messages import Completion


def answer(key: str) -> Answer:
    return Answer(
        key=key,
        completion=Completion(text="é", finish="stop", prompt_tokens=1, completion_tokens=1),
    )


def test_a_torn_last_line_is_trimmed_and_the_rest_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    with AppendLog(path) as log:
        log.append([answer("a"), answer("b")])
    with path.open("ab") as file:
        file.write(record_line(answer("c")).encode()[:-5])
    with AppendLog(path) as log:
        log.append([answer("d")])
    assert [a.key for a in read_records(path, Answer)] == ["a", "b", "d"]


def test_a_file_of_one_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"key": "never fin')
    with AppendLog(path):
        pass
    assert path.read_bytes() == b""


def test_a_log_is_closed_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.SYNC_EVERY_RECORDS", 1)
    monkeypatch.setattr("pipeline.store.CLOSED_EVERY_S", 0.0)
    path = tmp_path / "log.jsonl"
    with AppendLog(path) as log:
        handle = log._file
        first = log.append([answer("a")])
        second = log.append([answer("b"), answer("c")])
        assert handle.closed
        assert log.append([answer("d")]) > second > first == 0
    assert [a.key for a in read_records(path, Answer)] == ["a", "b", "c", "d"]


def test_a_log_that_cannot_be_opened_again_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.SYNC_EVERY_RECORDS", 1)
    monkeypatch.setattr("pipeline.store.CLOSED_EVERY_S", 0.0)
    path = tmp_path / "folder" / "log.jsonl"
    log = AppendLog(path)
    path.parent.rename(tmp_path / "away")
    with pytest.raises(DiskError, match=r"cannot append .* No such file or directory"):
        log.append([answer("a")])
    log.close()  # says nothing of its own
    assert [a.key for a in read_records(tmp_path / "away" / "log.jsonl", Answer)] == ["a"]


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(record_line(answer("a")) + '{"key": "b"}\n')
    with pytest.raises(DataError, match=r"log\.jsonl line 2 is not a answer: completion"):
        list(read_records(path, Answer))


def test_a_record_is_found_again_where_it_begins(tmp_path):
    path = tmp_path / "log.jsonl"
    with AppendLog(path) as log:
        places = [log.append([answer("a"), answer("b")]), log.append([answer("c")])]
    assert [(place, a.key) for place, a in placed_records(path, Answer)] == [
        (0, "a"),
        (places[1] // 2, "b"),
        (places[1], "c"),
    ]
    assert record_at(path, places[1], Answer) == answer("c")
    with pytest.raises(DataError, match=r"log\.jsonl byte 3 is not a answer"):
        record_at(path, 3, Answer)


def test_kept_answers_are_read_from_their_file(tmp_path):
    path = tmp_path / "log.jsonl"
    with closing(KeptAnswers(path)) as kept:
        kept.add("a", answer("a").completion)
        kept.add("a", answer("a").completion)  # answered again beside a neighbour
    with closing(KeptAnswers(path)) as kept:
        kept.add("b", answer("b").completion.model_copy(update={"completion_tokens": 5}))
    assert (list(kept), len(kept), kept.tokens) == (["a", "b"], 2, 6)
    assert kept["b"].completion_tokens == 5
    assert "c" not in kept
    with pytest.raises(KeyError):
        kept["c"]
    assert set(vars(kept)) == {"_cut", "_log", "_places", "tokens"}
    assert set(map(type, kept._places.values())) == {int}
    assert kept._cut == {}  # of those that a limit ended two numbers, and no text


def test_write_file_replaces_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    write_file(path, "one")
    write_file(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]

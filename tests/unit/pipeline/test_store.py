import pytest

from pipeline.asking import Answer
from pipeline.store import AppendLog, read_records, record_line, write_file
from serve.errors import DataError
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


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(record_line(answer("a")) + '{"key": "b"}\n')
    with pytest.raises(DataError, match=r"log\.jsonl line 2 is not a answer: completion"):
        list(read_records(path, Answer))


def test_write_file_replaces_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    write_file(path, "one")
    write_file(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]

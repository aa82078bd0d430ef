import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.reasoning import ReasoningStream, join_reasoning, split_reasoning


def test_the_canonical_form_splits_back():
    split = split_reasoning(join_reasoning("1 + 1 = 2", "2"))
    assert split == ("1 + 1 = 2", "Answer: 2", True)


def test_a_block_that_never_closes_has_no_answer():
    assert split_reasoning("<think>\nforever") == ("forever", "", False)


def test_text_without_tags_is_all_answer():
    assert split_reasoning("Answer: 2") == ("", "Answer: 2", True)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_a_stream_cut_anywhere_gives_the_same_parts(size):
    text = "<think>\na < b </thin k\n</think>\nAnswer: 2"
    assert streamed(text, size) == ("\na < b </thin k\n", "\nAnswer: 2")


@given(st.text(alphabet="<>/think ab\n", max_size=60), st.integers(1, 9))
def test_where_a_stream_is_cut_changes_nothing(text, size):
    assert streamed(text, size) == streamed(text, len(text) + 1)


def streamed(text: str, size: int) -> tuple[str, str]:
    stream = ReasoningStream()
    parts = [p for i in range(0, len(text), size) for p in stream.feed(text[i : i + size])]
    parts += stream.close()
    return tuple(
        "".join(piece for name, piece in parts if name == wanted)
        for wanted in ("reasoning", "answer")
    )

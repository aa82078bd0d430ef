import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.reasoning import FORMS, THOUGHT, ReasoningStream, join_reasoning, split_reasoning


def test_the_canonical_form_splits_back():
    split = split_reasoning(join_reasoning("1 + 1 = 2", "2"))
    assert split == ("1 + 1 = 2", "Answer: 2", True)


def test_a_block_that_never_closes_has_no_answer():
    assert split_reasoning("<think>\nforever") == ("forever", "", False)


def test_text_without_tags_is_all_answer():
    assert split_reasoning("Answer: 2") == ("", "Answer: 2", True)


SOLVED = (
    "<|begin_of_thought|>\n1 + 1 = 2\n<|end_of_thought|>\n"
    "<|begin_of_solution|>\nAnswer: 2\n<|end_of_solution|>"
)


def test_thought_and_solution_tags_split_like_think_tags():
    assert join_reasoning("1 + 1 = 2", "2", THOUGHT) == SOLVED
    assert split_reasoning(SOLVED) == ("1 + 1 = 2", "Answer: 2", True)
    assert split_reasoning(SOLVED[:30]) == ("1 + 1 = 2", "", False)
    # A chat template may have written the opening tag into the prompt.
    begun = SOLVED.removeprefix("<|begin_of_thought|>")
    assert split_reasoning(begun) == ("1 + 1 = 2", "Answer: 2", True)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 200])
def test_a_stream_shows_no_solution_tags(size):
    assert streamed(SOLVED, size) == ("\n1 + 1 = 2\n", "\n\nAnswer: 2\n")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_a_stream_cut_anywhere_gives_the_same_parts(size):
    text = "<think>\na < b </thin k\n</think>\nAnswer: 2"
    assert streamed(text, size) == ("\na < b </thin k\n", "\nAnswer: 2")


@given(st.text(alphabet="<>/think ab\n", max_size=60), st.integers(1, 9))
def test_where_a_stream_is_cut_changes_nothing(text, size):
    assert streamed(text, size) == streamed(text, len(text) + 1)


@pytest.mark.parametrize("name", sorted(FORMS))
@given(st.integers(1, 9), st.text(alphabet="<|>/_ab\n", max_size=20))
def test_both_forms_stream_alike_wherever_they_are_cut(name, size, inner):
    tags = FORMS[name]
    text = join_reasoning(inner, inner, tags)
    assert streamed(text, size) == streamed(text, len(text))


def streamed(text: str, size: int) -> tuple[str, str]:
    stream = ReasoningStream()
    parts = [p for i in range(0, len(text), size) for p in stream.feed(text[i : i + size])]
    parts += stream.close()
    return tuple(
        "".join(piece for name, piece in parts if name == wanted)
        for wanted in ("reasoning", "answer")
    )

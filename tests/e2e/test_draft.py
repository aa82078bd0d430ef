"""A small model guesses for a larger one: the same words sooner; another vocabulary is refused."""

import pytest

from pipeline.recipe_files import find_recipe, load_recipe
from serve.engines.llama_live import load_live
from serve.messages import Request, Sampling
from serve.models import resolve_model
from tests.e2e.serving import STUDENT, apart

TEACHER = load_recipe(find_recipe("smoke")).teacher
BASE = resolve_model(STUDENT.model, STUDENT.sha256)
# Far from any tie, so that the rounding of a batch cannot turn them.
COUNTING = ("11, 12, 13, 14,", "51, 52, 53, 54,")
TOKENS = 40


def said(path, draft, prompts=COUNTING, temperature=0.0, errs=False):
    """(texts, steps) of all of them at once; a draft that `errs` has every third guess wrong."""
    live = load_live(path, 2, 256, 1, draft)
    if errs:
        right = live._draft.guesses
        live._draft.guesses = lambda wanted: [
            [*guess[:2], *(token + 1 for token in guess[2:3]), *guess[3:]]
            for guess in right(wanted)
        ]
    for prompt in prompts:
        sampling = Sampling(max_tokens=TOKENS, temperature=temperature, seed=3)
        live.admit(prompt, Request(key=prompt, messages=(), sampling=sampling, begun=prompt))
    texts, going, steps = dict.fromkeys(prompts, ""), set(prompts), 0
    while going:
        steps += 1
        for key, chunk in live.step():
            texts[key] += chunk.text
            if chunk.finish:
                assert chunk.finish == "length"
                going.discard(key)
    live.close()
    return list(texts.values()), steps


@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_a_draft_that_is_always_right_needs_a_fifth_of_the_steps(temperature):
    alone, steps = apart(said, BASE, None, COUNTING, temperature)
    helped, fewer = apart(said, BASE, str(BASE), COUNTING, temperature)
    assert helped == alone
    # One that reads the prompts and says a token, then five tokens each.
    assert (steps, fewer) == (TOKENS, 1 + -(-(TOKENS - 1) // 5))


@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_a_draft_that_errs_changes_no_word(temperature):
    alone, _ = apart(said, BASE, None, COUNTING, temperature)
    helped, steps = apart(said, BASE, str(BASE), COUNTING, temperature, True)
    assert helped == alone
    # Two guesses that hold and a token of its own at a time.
    assert steps == 1 + (TOKENS - 1) // 3


def noted(path, draft):
    """What is said of a draft, and the first words without its help."""
    live = load_live(path, 2, 256, 1, draft)
    sampling = Sampling(max_tokens=4)
    live.admit("x", Request(key="x", messages=(), sampling=sampling, begun="1, 2, 3,"))
    text = ""
    while live.free() < 2:
        text += "".join(chunk.text for _, chunk in live.step())
    return live.note, text


def test_with_a_draft_of_another_vocabulary_a_model_answers_alone():
    teacher = resolve_model(TEACHER.model, TEACHER.sha256)
    note, text = apart(noted, teacher, str(BASE))
    assert note.startswith(
        f"{BASE.name} cannot draft for {teacher.name}: their vocabularies differ"
    )
    assert note.endswith("; it answers without a draft")
    assert text.startswith(" 4,")


def said_in_turn(partly):
    """Two questions that begin alike, one after the other, where a part can be forgotten or not."""
    live = load_live(BASE, 3, 256, 1)
    clear = live._model.clear_sequence
    if not partly:
        live._model.clear_sequence = lambda slot, first=0: first == 0 and clear(slot)
    texts = []
    for _ in range(2):
        for prompt in COUNTING:
            sampling = Sampling(max_tokens=12)
            live.admit(prompt, Request(key=prompt, messages=(), sampling=sampling, begun=prompt))
            text = ""
            while live.free() < 3:
                text += "".join(chunk.text for _, chunk in live.step())
            texts.append(text)
    live.close()
    return texts


def test_a_model_that_cannot_forget_a_part_reads_again():
    assert apart(said_in_turn, False) == apart(said_in_turn, True)

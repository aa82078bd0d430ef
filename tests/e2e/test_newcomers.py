"""Who has just come is answered alone up to the first words, and holds nobody up for longer."""

from itertools import pairwise

from serve.engines.llama_live import ALONE_ROWS, FIRST_TOKENS, READ_BESIDE_TOKENS, load_live
from serve.messages import Request, Sampling
from serve.models import resolve_model
from tests.e2e.serving import STUDENT, apart

BASE = resolve_model(STUDENT.model, STUDENT.sha256)
SHORT, LONG = "One, two,", "one, two, " * 60


def written(prompt, steps):
    """Tokens of two old answers and of one of `prompt` that joins them, after each of `steps`."""
    live = load_live(BASE, 3, 512, 1)

    def admit(key, text):
        sampling = Sampling(max_tokens=64, temperature=0.0, seed=0)
        live.admit(key, Request(key=key, messages=(), sampling=sampling, begun=text))

    def tokens():
        return tuple(len(live._talks[key].answer.ids) for key in ("a", "b", "new"))

    for key in ("a", "b"):
        admit(key, SHORT + key)
    while min(len(talk.answer.ids) for talk in live._talks.values()) < 10:
        live.step()
    admit("new", prompt)
    counts = [tokens()]
    for _ in range(steps):
        live.step()
        counts.append(tokens())
    live.close()
    # Of each step, how many tokens it brought to whom.
    return [tuple(now - then for then, now in zip(*two, strict=True)) for two in pairwise(counts)]


def test_a_newcomer_has_its_first_tokens_alone_and_then_its_turn_among_all():
    alone, together = [(0, 0, 1)] * FIRST_TOKENS, [(1, 1, 1)] * 3
    assert apart(written, SHORT, FIRST_TOKENS + 3) == alone + together


def test_a_newcomer_who_reads_long_lets_the_others_speak_in_between():
    steps_alone = -(-ALONE_ROWS // READ_BESIDE_TOKENS)
    assert steps_alone == 2
    # 64 tokens are read in each, in the third beside the two who speak.
    assert apart(written, LONG, 5)[:3] == [(0, 0, 0), (0, 0, 0), (1, 1, 0)]

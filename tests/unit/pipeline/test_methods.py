"""Lessons of method `aligned` and `recover` from given grades, and the vocabularies they share."""

import math

import pytest

from pipeline.attempts import Attempt
from pipeline.byte_spans import Run, teacher_form
from pipeline.lesson import Target
from pipeline.methods import aligned, recover, span
from pipeline.methods.graded import Tongues, align, text_for_teacher
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import TeacherOptions, WorkedExample
from pipeline.records import Problem, Verdict
from pipeline.shared_vocabulary import shared_vocabulary
from pipeline.tasks.judge import Judge
from serve.messages import Completion, Grade, TokenScores

# Student: one token a character, tags whole. Teacher: "12" is one token, "Answer" is one.
STUDENT = ["<think>", "</think>", "\n", "1", "2", "3", "+", "=", "A", "<end>"]
TEACHER = ["12", "1", "2", "3", "+", "=", "\n", "A", "<stop>", "7"]
END, STOP = 9, 8


class Letters:
    """A tokenizer of those ten tokens."""

    def __call__(self, text, add_special_tokens=False):
        ids = []
        while text:
            token = next(i for i, t in enumerate(STUDENT) if text.startswith(t))
            ids.append(token)
            text = text[len(STUDENT[token]) :]
        return {"input_ids": ids}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(STUDENT[i] for i in ids)


def vocabulary():
    return shared_vocabulary(
        [None if t == "<end>" else t.encode() for t in STUDENT],
        [None if t == "<stop>" else t.encode() for t in TEACHER],
        END,
        [STOP],
        lambda texts: [Letters()(t)["input_ids"] if t != "7" else [] for t in texts],
    )


TONGUES = Tongues([t.encode() if t != "<end>" else None for t in STUDENT], END, vocabulary())


def test_a_blank_that_the_student_sets_before_every_text_is_no_word_for_it():
    """Sentencepiece: encoding "=" gives a blank and "=", and a blank before " the" is a part."""
    student = [b" ", b" the", b"=", b"<", None]
    texts = {"=": [0, 2], " the": [1], "<x": [0, 3]}
    shared = shared_vocabulary(
        student, [b"=", b" the", b"<x"], 4, [], lambda asked: [texts[t] for t in asked]
    )
    assert shared.first_of == {0: 2, 1: 1}


def test_a_teachers_token_is_the_students_first_one_for_its_bytes_and_ends_are_one():
    shared = vocabulary()
    expected = {t: t for t in ("1", "2", "3", "+", "=", "\n", "A")} | {"12": "1"}
    named = {TEACHER[t]: STUDENT[s] for t, s in shared.first_of.items() if t != STOP}
    assert named == expected
    assert shared.first_of[STOP] == END
    assert (shared.shared, shared.student_tokens, shared.teacher_tokens) == (8, 9, 9)


def graded(text, teacher_tokens, nats, rows=None, end_nats=-0.1, finish="stop", passed=False):
    ids = tuple(Letters()(text)["input_ids"])
    plain, runs = teacher_form(text)
    assert "".join(teacher_tokens) == plain
    starts = [len("".join(teacher_tokens[:i])) for i in range(len(teacher_tokens))]
    own = [TEACHER.index(t) for t in teacher_tokens]
    rows = rows or [{i: n} for i, n in zip((*own, STOP), (*nats, end_nats), strict=True)]
    grade = Grade(
        scores=TokenScores(ids=tuple(own), byte_offsets=tuple(starts), logprobs_nats=tuple(nats)),
        top_ids=tuple(tuple(row) for row in rows),
        top_logprobs_nats=tuple(tuple(row.values()) for row in rows),
        end_nats=end_nats,
        read_tokens=len(own),
        text_bytes=len(plain.encode()),
    )
    attempt = Attempt(
        key="k",
        block=0,
        problem=Problem(question="q", answer="3", family="f"),
        completion=Completion(
            text=text, ids=ids, finish=finish, prompt_tokens=2, completion_tokens=len(ids)
        ),
        verdict=Verdict(passed=passed, reason="wrong", extracted=None, verifier="none"),
    )
    return align(attempt, (50, 51), grade, runs, TONGUES)


LINE = "<think>\n1+2=12\n</think>\nA3"
TOKENS = ["1", "+", "2", "=", "12", "\n", "A", "3"]


def test_a_wrong_attempt_teaches_up_to_its_first_mistake():
    nats = [-0.1, -0.1, -0.1, -0.1, -4.0, -0.1, -0.1, -0.1]
    rows = [{TEACHER.index(t): -0.1} for t in TOKENS] + [{STOP: -0.1}]
    # After "1+2=" the teacher wants 3; 12 and 1 both begin with the student's 1; 7 it cannot say.
    rows[4] = {
        TEACHER.index("3"): math.log(0.8),
        0: math.log(0.02),
        TEACHER.index("1"): -4.0,
        9: -5.0,
    }
    one = graded(LINE, TOKENS, nats, rows)
    options = OnPolicyOptions(method="aligned", beta=0.0)
    lesson = aligned.lesson_of(one, options, TONGUES)
    assert lesson.attempt == "k"
    # Prompt of two, "<think>", "\n", then 1 + 2 = and the place of the mistake.
    assert [t.at for t in lesson.targets] == [4, 5, 6, 7, 8]
    assert lesson.ids == (50, 51, *Letters()("<think>\n1+2=1")["input_ids"])
    mistake = lesson.targets[-1]
    assert mistake.ids == (STUDENT.index("3"), STUDENT.index("1"))
    assert mistake.shares == pytest.approx((0.8, 0.02 + math.exp(-4.0)))


@pytest.mark.parametrize(("read", "at"), [(6, 7), (5, 6)])
def test_a_grade_that_stopped_after_the_mistake_teaches_the_same(read, at):
    nats = [-0.1, -0.1, -0.1, -0.1, -4.0, -0.1, -0.1, -0.1]
    whole = graded(LINE, TOKENS, nats)
    scores = whole.grade.scores
    cut = TokenScores(
        ids=scores.ids[:read],
        byte_offsets=scores.byte_offsets[:read],
        logprobs_nats=scores.logprobs_nats[:read],
    )
    grade = whole.grade.model_copy(
        update={"scores": cut, "top_ids": whole.grade.top_ids[:read], "stopped_at": at}
    )
    plain, runs = teacher_form(LINE)
    assert plain.encode()[:at] == "".join(TOKENS[:read]).encode()
    one = align(whole.attempt, (50, 51), grade, runs, TONGUES)
    options = OnPolicyOptions(method="aligned", beta=0.0)
    own = [-0.5] * one.graded_tokens
    assert (whole.graded_tokens, one.graded_tokens) == (len(whole.answer), 2 + at)
    assert (one.spelt, one.ends) == (True, False)
    assert aligned.lesson_of(one, options, TONGUES, own) == aligned.lesson_of(
        whole, options, TONGUES, [*own, *[-0.5] * 9]
    )
    (first,) = span.lessons([one], options, TONGUES, {"k": own})
    assert first.attempt == "k"
    assert [first] == span.lessons([whole], options, TONGUES, {"k": [*own, *[-0.5] * 9]})
    recovering = OnPolicyOptions(method="recover")
    assert (
        recover.prefix_of(one, plain, recovering)[1:]
        == recover.prefix_of(whole, plain, recovering)[1:]
    )


def test_a_right_way_is_taught_to_its_end_and_the_tags_are_left_alone():
    one = graded(LINE, TOKENS, [-0.1] * 8)
    options = OnPolicyOptions(method="aligned", learn_from="all", beta=0.0)
    lesson = aligned.lesson_of(one, options, TONGUES)
    # "</think>" and the line feed behind it, at 11 and 12, have no place in the teacher's text.
    assert [t.at for t in lesson.targets] == [4, 5, 6, 7, 8, 10, 13, 14, 15]
    assert lesson.targets[-1] == Target(15, (END,), (pytest.approx(math.exp(-0.1)),))
    assert lesson.ids == (50, 51, *one.answer, END)
    # "12" is one span of two student tokens: the second one gets the span's advantage.
    own = [-0.5] * (len(one.answer) + 1)
    with_inner = aligned.lesson_of(one, options, TONGUES, own)
    (inner,) = with_inner.advantages
    assert (inner.at, inner.old_nats) == (9, -0.5)
    assert inner.nats == pytest.approx(-0.1 - -1.0)


def test_the_students_own_log_probabilities_are_asked_where_a_token_has_no_target():
    right, nats = [-0.1] * 8, [-0.1, -0.1, -0.1, -0.1, -0.1, -4.0, -0.1, -0.1]
    up_to_mistake = OnPolicyOptions(method="aligned", beta=0.0)
    # The student's "1" and "2" inside the teacher's "12" lie before the mistake, or are it.
    assert aligned.needs_own_nats(graded(LINE, TOKENS, right), up_to_mistake)
    assert aligned.needs_own_nats(graded(LINE, TOKENS, nats), up_to_mistake)
    nats[4:6] = -4.0, -0.1
    mistaken = graded(LINE, TOKENS, nats)
    assert not aligned.needs_own_nats(mistaken, up_to_mistake)
    without = aligned.lesson_of(mistaken, up_to_mistake, TONGUES)
    own = [-0.5] * (len(mistaken.answer) + 1)
    assert without == aligned.lesson_of(mistaken, up_to_mistake, TONGUES, own)
    whole = OnPolicyOptions(method="aligned", learn_from="all", beta=0.0)
    assert aligned.needs_own_nats(mistaken, whole)


def test_a_student_token_longer_than_the_teachers_has_no_word_of_its():
    # The student's "Ab" in one token, the teacher's in two: a word for "A" is none for "Ab".
    tongues = Tongues([b"Ab", b"1"], END, vocabulary())
    attempt = graded("1", ["1"], [-0.1]).attempt
    completion = attempt.completion.model_copy(update={"text": "Ab1", "ids": (0, 1)})
    grade = Grade(
        scores=TokenScores(ids=(7, 5, 1), byte_offsets=(0, 1, 2), logprobs_nats=(-0.1, -0.2, -0.3)),
        top_ids=((7,), (5,), (1,), (STOP,)),
        top_logprobs_nats=((-0.1,), (-0.2,), (-0.3,), (-0.1,)),
        end_nats=-0.1,
        read_tokens=3,
        text_bytes=3,
    )
    one = align(
        attempt.model_copy(update={"completion": completion}), (50,), grade, [Run(0, 0, 3)], tongues
    )
    options = OnPolicyOptions(method="aligned", learn_from="all", beta=0.0)
    assert aligned.needs_own_nats(one, options)
    lesson = aligned.lesson_of(one, options, tongues, (-0.9, -0.5, -0.5))
    assert [t.at for t in lesson.targets] == [2, 3]
    (whole,) = lesson.advantages
    assert (whole.at, whole.nats) == (1, pytest.approx(-0.3 + 0.9))


def test_a_text_that_could_not_be_graded_teaches_nothing():
    one = graded(LINE, TOKENS, [-0.1] * 8)
    nothing = align(one.attempt, (50, 51), Grade.of_nothing(read_tokens=9), [Run(0, 0, 8)], TONGUES)
    assert one.spelt
    assert (nothing.spelt, nothing.spans, nothing.ends) == (False, [], False)
    for learn_from in ("wrong", "all"):
        options = OnPolicyOptions(method="aligned", learn_from=learn_from, beta=0.0)
        assert aligned.lessons([nothing], options, TONGUES, {}) == []
        own = {"k": [-0.5] * (len(nothing.answer) + 1)}
        assert span.lessons([nothing], options, TONGUES, own) == []
    assert recover.prefix_of(nothing, "1+2=12\nA3", OnPolicyOptions(method="recover")) is None


def test_where_the_teacher_wavers_the_divergence_is_forward():
    rows = [{TEACHER.index(t): -0.01} for t in TOKENS] + [{STOP: -0.01}]
    rows[0] = {1: math.log(0.4), 2: math.log(0.3), 3: math.log(0.3)}
    one = graded(LINE, TOKENS, [-0.1] * 8, rows)
    options = OnPolicyOptions(method="aligned", learn_from="all", beta=1.0, forward_above_nats=0.5)
    betas = [t.beta for t in aligned.lesson_of(one, options, TONGUES).targets]
    assert betas == [0.0, *[1.0] * 8]


def test_what_the_teacher_did_not_list_is_wavering_too():
    rows = [{TEACHER.index(t): -0.01} for t in TOKENS] + [{STOP: -0.01}]
    rows[0] = {1: math.log(0.4)}
    one = graded(LINE, TOKENS, [-0.1] * 8, rows)
    # Entropy of 0.4 and a rest of 0.6: 0.673 nats; of what is listed alone 0.367.
    for limit, beta in ((0.6, 0.0), (0.7, 1.0)):
        options = OnPolicyOptions(
            method="aligned", learn_from="all", beta=1.0, forward_above_nats=limit
        )
        assert aligned.lesson_of(one, options, TONGUES).targets[0].beta == beta


def continuation(text):
    return Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=len(text))


def test_recover_goes_on_from_the_students_own_words(monkeypatch):
    nats = [-0.1, -0.1, -0.1, -0.1, -4.0, -0.1, -0.1, -0.1]
    one = graded(LINE, TOKENS, nats)
    prefix = recover.prefix_of(one, "1+2=12\nA3", OnPolicyOptions(method="recover"))
    assert (prefix.begun, prefix.tokens) == ("1+2=", 6)
    monkeypatch.setattr(recover, "join_reasoning", lambda r, a: f"<think>\n{r}\n</think>\nA{a}")
    monkeypatch.setattr(recover, "reasoning_of", lambda text: text.rpartition("\n")[0])
    with Judge() as judge:
        lesson = recover.recovered(prefix, continuation("3\nAnswer: 3"), judge, Letters(), TONGUES)
        assert (
            recover.recovered(prefix, continuation("1\nAnswer: 1"), judge, Letters(), TONGUES)
            is None
        )
    assert lesson.attempt == "k"
    before = (50, 51, *Letters()("<think>\n1+2=")["input_ids"])
    rest = Letters()("3\n</think>\nA3")["input_ids"]
    assert lesson.ids == (*before, *rest, END)
    assert [t.at for t in lesson.targets] == list(range(len(before), len(lesson.ids)))
    assert all(t.shares == (1.0,) for t in lesson.targets)


class Characters:
    """An id a character."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(map(chr, ids))


HALVES = "<think>\n1 + 1 = 2\n2 + 3 = 6\n</think>\nAnswer: 6"


@pytest.mark.parametrize(("thinks", "lead"), [(False, ""), (True, "<think>\n")])
def test_a_teacher_that_cannot_grade_goes_on_from_the_middle_in_its_own_form(thinks, lead):
    problem = Problem(question="1 + 1 + 3 =", answer="5", family="f")
    attempt = Attempt(
        key="a",
        block=0,
        problem=problem,
        completion=Completion(text=HALVES, finish="stop", prompt_tokens=1, completion_tokens=9),
        verdict=Verdict(passed=False, reason="wrong", extracted="6", verifier="v"),
    )
    teacher = TeacherOptions(model="m", system="s", thinks=thinks)
    prefix = recover.middle_prefix(attempt, (50, 51), text_for_teacher(HALVES, teacher)[0])
    assert prefix.begun == f"{lead}1 + 1 = 2\n"
    close = "\n</think>\n" if thinks else "\n"
    said = continuation(f"2 + 3 = 5{close}Answer: 5")
    with Judge() as judge:
        lesson = recover.recovered(prefix, said, judge, Characters(), TONGUES)
    text = "<think>\n1 + 1 = 2\n2 + 3 = 5\n</think>\nAnswer: 5"
    assert lesson.ids == (50, 51, *Characters()(text)["input_ids"], END)
    kept = Characters()("<think>\n1 + 1 = 2\n")["input_ids"]
    assert min(t.at for t in lesson.targets) == 2 + len(kept)


def test_recover_leaves_alone_what_the_teacher_would_have_written():
    one = graded(LINE, TOKENS, [-0.1] * 8)
    assert recover.prefix_of(one, "1+2=12\nA3", OnPolicyOptions(method="recover")) is None


def test_presets_give_way_to_what_is_said():
    assert OnPolicyOptions(preset="gkd").beta == 0.5
    assert OnPolicyOptions(preset="gkd", beta=0.2).beta == 0.2
    chosen = OnPolicyOptions(preset="thinking-machines")
    assert (chosen.method, chosen.samples, chosen.replay) == ("span", 4, 0)


def test_the_divergence_is_the_methods_own_unless_it_is_said():
    assert OnPolicyOptions().resolved("exact").divergence_beta == 1.0
    assert OnPolicyOptions().resolved("aligned").divergence_beta == 0.0
    assert OnPolicyOptions(beta=0.3).resolved("exact").divergence_beta == 0.3


def test_looks_are_taken_before_practice_at_its_end_and_in_between():
    for blocks, every, after in ((2, 3, [0, 2]), (3, 3, [0, 3]), (7, 3, [0, 3, 6, 7]), (5, 0, [])):
        options = OnPolicyOptions(blocks=blocks, watch_blocks=every)
        assert [n for n in range(blocks + 1) if options.looks_after(n)] == after
        assert options.looks == len(after)


def test_a_teacher_grades_tags_where_it_writes_them_itself():
    said, bare = "<think>\n1+1=2\n</think>\nAnswer: 2", "1+1=2\nAnswer: 2"
    plain = TeacherOptions(model="m", system="s")
    tagged = WorkedExample(question="q", reasoning="<think>\nr\n</think>", answer="1")
    assert text_for_teacher(said, plain)[0] == bare
    assert text_for_teacher(said, plain.model_copy(update={"thinks": True})) == (
        said,
        [Run(0, 0, len(said))],
    )
    shown = plain.model_copy(update={"examples": (tagged,)})
    assert text_for_teacher(said, shown)[0] == said
    assert "thinks" not in plain.model_dump()

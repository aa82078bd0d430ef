"""Which worked examples a question sees, and in which turns."""

from pipeline.prompts import student_messages, teacher_messages
from pipeline.recipe import StudentOptions, TeacherOptions, WorkedExample


def example(question: str, family: str | None = None) -> WorkedExample:
    return WorkedExample(question=question, reasoning="\nso\n", answer="1", family=family)


TEACHER = TeacherOptions(
    model="m", system="s", examples=(example("any"), example("g", "gcd"), example("p", "products"))
)


def asked(family: str | None) -> list[str]:
    return [m.content for m in teacher_messages(TEACHER, "q", family) if m.role == "user"]


def test_a_family_with_examples_sees_its_own_and_the_common_ones():
    assert asked("gcd") == ["any", "g", "q"]


def test_other_questions_see_every_example():
    assert asked("mine") == asked(None) == ["any", "g", "p", "q"]


def test_an_example_is_a_finished_turn_that_ends_with_its_answer():
    turns = teacher_messages(TEACHER, "q", "gcd")
    assert [m.role for m in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns[2].content == "so\nAnswer: 1"


def test_the_student_sees_its_system_prompt_and_the_question_alone():
    turns = student_messages(StudentOptions(model="m", system="think"), "q")
    assert [(m.role, m.content) for m in turns] == [("system", "think"), ("user", "q")]

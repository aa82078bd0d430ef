"""The order in which lessons are learnt from."""

import random

from pipeline.lesson import Lesson, shuffled


def test_lessons_of_an_attempt_follow_each_other_and_those_of_none_stand_alone():
    lessons = [Lesson((i,), attempt=f"a{i % 10}") for i in range(20)]
    replayed = [Lesson((i,)) for i in range(20, 30)]
    ordered = shuffled([*lessons, *replayed], random.Random(3))
    assert sorted(lesson.ids for lesson in ordered) == [(i,) for i in range(30)]
    names = [lesson.attempt or str(lesson.ids[0]) for lesson in ordered]
    runs = [name for i, name in enumerate(names) if not i or names[i - 1] != name]
    assert len(runs) == len(set(runs)) == 20
    assert [lesson.ids[0] for lesson in ordered if lesson.attempt == "a7"] == [7, 17]
    # By chance, and the same by the same seed.
    assert runs != sorted(runs, key=lambda name: (name.isdigit(), name))
    assert ordered == shuffled([*lessons, *replayed], random.Random(3))
    assert ordered != shuffled([*lessons, *replayed], random.Random(4))
    alone = [lesson.ids[0] for lesson in ordered if not lesson.attempt]
    assert alone != sorted(alone)

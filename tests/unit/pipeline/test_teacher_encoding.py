"""Which copy of the teacher answers, by processor, size and memory."""

import pytest

from pipeline.model_shapes import Model
from pipeline.recipe import TeacherOptions
from pipeline.teacher_encoding import encoded, encoding, fastest

SMALL, LARGE = Model("a", 1_500_000_000, 5.0), Model("b", 7_000_000_000, 5.0)
UNKNOWN = Model("c", 0, 16.0)
PLAIN = {"avx2", "f16c"}
AMX, VNNI = PLAIN | {"amx_int8", "avx512_vnni"}, PLAIN | {"avx_vnni"}


@pytest.mark.parametrize(
    ("flags", "model", "memory_gib", "written"),
    [
        (AMX, SMALL, 24, "Q8_0"),
        (AMX, LARGE, 24, "as it is"),  # 6.9 of 6 GiB
        (AMX, LARGE, 32, "Q8_0"),
        (VNNI, SMALL, 24, "as it is"),
        (PLAIN, SMALL, 24, "F16"),  # 2.8 of 6 GiB
        (PLAIN, SMALL, 8, "as it is"),
        (PLAIN, LARGE, 24, "as it is"),
        (PLAIN, UNKNOWN, 24, "as it is"),
        (set(), SMALL, 24, "as it is"),
    ],
)
def test_many_rows_are_read_by_the_copy_that_is_fastest_and_fits(flags, model, memory_gib, written):
    assert fastest(flags, model, memory_gib) == written


def test_a_file_that_has_as_many_bits_is_left_as_it_is():
    assert fastest(PLAIN, Model("a", 1_500_000_000, 16.0), 24) == "as it is"


def test_a_recipe_s_word_holds_on_every_machine_and_counts_in_forecasts():
    teacher = TeacherOptions(model="hub:Qwen/Qwen2.5-1.5B", system="s", encoding="Q8_0")
    assert encoding(teacher) == "Q8_0"
    assert encoded(teacher).weights_bytes == pytest.approx(1.543e9 * 8.51 / 8, rel=0.01)
    assert encoded(TeacherOptions(model=teacher.model, system="s")).bits == 16.0


def test_only_a_gguf_is_written_again():
    teacher = TeacherOptions(engine="transformers", model="path:a", system="s", encoding="auto")
    assert encoding(teacher) == "as it is"

"""The quick reader finds what the library's reader finds, but for long arrays."""

import gguf
import numpy as np
import pytest

from quant.gguf_reader import LONG_ARRAY, TensorReader


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_string("first", "x")
    writer.add_array("tokenizer.ggml.tokens", [f"tök{n}" for n in range(LONG_ARRAY + 1)])
    writer.add_array("tokenizer.ggml.scores", [n / 2 for n in range(LONG_ARRAY + 1)])
    writer.add_array("short", ["a", "b"])
    writer.add_uint32("last", 7)
    writer.add_tensor("a.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_fields_and_tensors_are_the_librarys_own(path):
    ours, theirs = TensorReader(path), gguf.GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    for name in ("general.architecture", "first", "short", "last"):
        assert ours.fields[name].contents() == theirs.fields[name].contents()
    assert len(theirs.fields["tokenizer.ggml.tokens"].contents()) == LONG_ARRAY + 1
    assert ours.fields["tokenizer.ggml.tokens"].contents() == []
    assert ours.fields["tokenizer.ggml.scores"].contents() == []
    assert np.array_equal(ours.tensors[0].data, theirs.tensors[0].data)
    assert ours.data_offset == theirs.data_offset


def test_a_file_that_ends_in_its_vocabulary_is_refused(path, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match="the file ends in an array at byte"):
        TensorReader(cut)

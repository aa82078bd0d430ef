"""Batches without padding and without repeated beginnings: which tokens stay, and their sums."""

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

from pipeline.layout import PART_ROWS, TOKEN_MULTIPLE, layout_of
from pipeline.packing import PACKED, packed_hidden_states, packs

TINY = {
    "vocab_size": 50,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}


def rows_of(*rows: list[int], width: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids padded on the right with 0, and what is real."""
    width = max(width, *map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.arange(width)[None] < torch.tensor([[len(row)] for row in rows])


def test_every_token_is_there_once_and_idle_ones_fill_up_to_the_multiple():
    ids, real = rows_of(list(range(1, 101)), list(range(2, 62)), list(range(3, 93)), width=112)
    layout = layout_of(ids, real)
    assert len(layout.ids) == len(layout.positions) == 4 * TOKEN_MULTIPLE
    assert layout.ids[:250].tolist() == ids[real].tolist()
    assert layout.positions[:250].tolist() == [*range(100), *range(60), *range(90)]
    assert layout.ids[250:].tolist() == layout.positions[250:].tolist() == [0] * 6
    assert layout.real.tolist() == list(range(250))


def test_rows_that_begin_alike_share_what_they_begin_with():
    layout = layout_of(*rows_of([7, 8, 9, 1], [7, 8, 5], [4, 8, 9], [7, 8, 9, 1]))
    # Tokens 0 to 3 are row 0's, 4 is the 5 of row 1, 5 to 7 are row 2's; row 3 is all row 0's.
    assert layout.real.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 0, 1, 2, 3]
    assert layout.ids[:8].tolist() == [7, 8, 9, 1, 5, 4, 8, 9]
    assert layout.positions[:8].tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert layout.shared.tolist() == [0, 1, 2, 3]
    (part,) = layout.parts
    assert (part.rows, part.width, layout.width) == (4, 16, 16)
    # The shortest first: row 1, row 2, then rows 0 and 3.
    placed = part.sources.view(4, 16)[:, :4].tolist()
    assert placed == [[0, 1, 4, 0], [5, 6, 7, 0], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert part.sources[part.places].tolist() == part.tokens.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert part.places.tolist() == [2, 16, 17, 18, 32, 33, 34, 35]
    assert part.copies.tolist() == [0, 1, 32, 33, 34, 35, 48, 49, 50, 51]
    assert part.copied.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3]


def test_rows_of_like_length_attend_beside_each_other():
    rows = [
        [row * 100 + place for place in range(length)] for row, length in enumerate((40, 3, 17))
    ]
    layout = layout_of(*rows_of(*rows, *[[]] * PART_ROWS))
    assert [(part.rows, part.width) for part in layout.parts] == [(3, 48)]
    layout = layout_of(*rows_of(*rows, rows[0], [9], [8, 9]))
    assert [(part.rows, part.width) for part in layout.parts] == [(4, 32), (2, 48)]


@pytest.mark.parametrize(
    "rows",
    [
        ([7, 8, 9, 1, 2], [7, 8, 5], [7, 8, 9, 1], [6, 8, 9]),
        ([7, 8, 9], [7, 8, 9]),
        ([7, 8, 9], [1, 2, 3, 4]),
        ([7],),
        ([7, 8], [7, 8, 9, 1, 2, 3], [7, 8, 9], [], [7, 8, 9, 4, 4, 4, 4], [5], [7, 8, 6, 6]),
    ],
)
def test_states_and_gradients_are_those_of_the_padded_batch(rows):
    ids, real = rows_of(*rows)
    wanted = torch.randn(int(real.sum()), 8, generator=torch.Generator().manual_seed(1))
    found = []
    for attention in ("eager", PACKED):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**TINY)).train()
        model.set_attn_implementation(attention)
        states = packed_hidden_states(model, ids, real, torch.float32)
        (states * wanted).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((states.detach(), gradients))
    (padded, gradients), (packed, packed_gradients) = found
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)
    assert packed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-3, atol=1e-5)


def test_only_models_whose_layers_all_attend_to_everything_are_packed():
    assert packs(LlamaForCausalLM(LlamaConfig(**TINY)))
    assert not packs(LlamaForCausalLM(LlamaConfig(**TINY, attention_dropout=0.1)))
    assert not packs(MistralForCausalLM(MistralConfig(**TINY, sliding_window=4)))
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    assert not packs(Qwen3ForCausalLM(Qwen3Config(**TINY, **window)))

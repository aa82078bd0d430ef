"""Where the tokens of a batch stand when neither padding nor repeated beginnings are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

# Buffers of few sizes fit into each other's places; of many, the heap grows with every step.
TOKEN_MULTIPLE = 64
# Rows of like length attend beside each other: few are short of padding, and of cache-sized scores.
PART_ROWS = 4
WIDTH_MULTIPLE = 16


class Part(NamedTuple):
    """Some rows of the batch, padded to the longest of them: b x t places.

    `sources` (b x t,): the token at each place, any at padding. `places` (F,) are where tokens
    `tokens` (F,) stand for the first time, `copies` (C,) where shared tokens stand; `copied` (C,)
    says which of the shared.
    """

    sources: torch.Tensor
    places: torch.Tensor
    tokens: torch.Tensor
    copies: torch.Tensor
    copied: torch.Tensor
    rows: int
    width: int


class Layout(NamedTuple):
    """N tokens that are read once each, with the `ids` (N,) and `positions` (N,) they have.

    A token whose row is like an earlier one up to there is that row's token. `real` (R,): the token
    at each real place of the batch, row by row. `shared` (S,): tokens that stand at several places.
    The last tokens, up to a multiple of `TOKEN_MULTIPLE`, stand nowhere.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    real: torch.Tensor
    shared: torch.Tensor
    parts: tuple[Part, ...]

    @property
    def width(self) -> int:
        return max(part.width for part in self.parts)


def layout_of(ids_BT: torch.Tensor, real_BT: torch.Tensor) -> Layout:
    """The layout of a batch padded on the right."""
    lengths = real_BT.sum(1).tolist()
    token_after: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    positions: list[int] = []
    rows: list[list[int]] = []
    first_row: list[int] = []
    for number, (row, length) in enumerate(zip(ids_BT.tolist(), lengths, strict=True)):
        tokens, token = [], -1
        for position, id_ in enumerate(row[:length]):
            token = token_after.setdefault((token, id_), len(ids))
            if token == len(ids):
                ids.append(id_)
                positions.append(position)
                first_row.append(number)
            tokens.append(token)
        rows.append(tokens)
    real = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    counts = torch.bincount(real, minlength=len(ids))
    shared = (counts > 1).nonzero()[:, 0]
    place_of_shared = {token: place for place, token in enumerate(shared.tolist())}
    order = sorted(range(len(rows)), key=lambda row: lengths[row])
    parts = tuple(
        _part([rows[row] for row in chosen], chosen, first_row, place_of_shared)
        for start in range(0, len(order), PART_ROWS)
        if rows[(chosen := order[start : start + PART_ROWS])[-1]]
    )
    idle = [0] * (-len(ids) % TOKEN_MULTIPLE)
    return Layout(torch.tensor(ids + idle), torch.tensor(positions + idle), real, shared, parts)


def _part(
    rows: Sequence[list[int]],
    numbers: Sequence[int],
    first_row: list[int],
    place_of_shared: dict[int, int],
) -> Part:
    """`numbers` of the rows in the batch; `first_row`: the one where each token stands first;
    `place_of_shared`: of each shared token among these."""
    width = -(-max(map(len, rows)) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    sources: list[int] = []
    firsts: list[tuple[int, int]] = []
    copies: list[tuple[int, int]] = []
    for number, row in zip(numbers, rows, strict=True):
        for place, token in enumerate(row, len(sources)):
            if first_row[token] == number:
                firsts.append((place, token))
            if token in place_of_shared:
                copies.append((place, place_of_shared[token]))
        sources += row + [0] * (width - len(row))
    first_F2 = torch.tensor(firsts, dtype=torch.long).view(-1, 2)
    copy_C2 = torch.tensor(copies, dtype=torch.long).view(-1, 2)
    return Part(
        torch.tensor(sources),
        first_F2[:, 0],
        first_F2[:, 1],
        copy_C2[:, 0],
        copy_C2[:, 1],
        len(rows),
        width,
    )

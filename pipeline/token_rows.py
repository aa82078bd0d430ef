"""Rows of heads and embeddings where student and teacher share one vocabulary.

Checkpoints of one tokenizer are padded to different multiples (Qwen2.5 1.5B and 7B): ids are
compared one by one, and what stands beyond them is cut for the training and given back after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.errors import DataError


def compare_vocabularies(student_tokenizer: Any, teacher_tokenizer: Any) -> int:
    """How many token ids both have. Raises DataError naming the first one that differs."""
    student, teacher = (
        {index: token for token, index in tokenizer.get_vocab().items()}
        for tokenizer in (student_tokenizer, teacher_tokenizer)
    )
    for index in sorted(student.keys() | teacher.keys()):
        ours, theirs = student.get(index), teacher.get(index)
        if ours != theirs:
            raise DataError(
                f"the teacher's vocabulary is not the student's: token {index} is "
                f"{_quoted(ours)} for the student and {_quoted(theirs)} for the teacher",
                hint='another tokenizer needs on_policy.method = "aligned" or "span"',
            )
    return 1 + int(max(student))


def _quoted(token: str | None) -> str:
    return "no token" if token is None else repr(token)


def shared_rows(student: Any, teacher: Any, tokens: int) -> int:
    """Rows that are tokens of both. Raises DataError when a head has not one for each of them."""
    counts = [len(model.get_output_embeddings().weight) for model in (student, teacher)]
    if min(counts) < tokens:
        raise DataError(
            f"the heads have {counts[0]} (student) and {counts[1]} (teacher) rows "
            f"for {tokens} tokens"
        )
    return tokens


def cut_padding(model: Any, rows: int) -> list[Any]:
    """Leave `rows` of head and embedding; returns what stood beyond, (rows, D) of each.

    Checkpoints of one tokenizer are padded to different multiples (Qwen2.5 1.5B and 7B), and a
    padding row is no token: neither the loss nor an attempt should see one.
    """
    weights = token_weights(model)
    if all(len(weight) == rows for weight in weights):
        return []
    cut = [weight[rows:].detach().clone() for weight in weights]
    model.resize_token_embeddings(rows)
    return cut


def give_back_padding(model: Any, cut: Sequence[Any]) -> None:
    """Undo `cut_padding`."""
    if not cut:
        return
    import torch

    rows = len(token_weights(model)[0])
    model.resize_token_embeddings(rows + len(cut[0]), mean_resizing=False)
    with torch.no_grad():
        for weight, beyond in zip(token_weights(model), cut, strict=True):
            weight[rows:] = beyond


def token_weights(model: Any) -> list[Any]:
    """Weights with a row for each token: one if head and embedding are tied."""
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return weights[:1] if weights[0] is weights[1] else weights

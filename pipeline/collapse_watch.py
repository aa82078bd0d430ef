"""Looks at held-out problems while the student practises: does it get surer without getting better?

Rule: entropy at or below 0.8 of the first look, together with pass@k a tenth or more below the best
look, is a collapse. At the first one the divergence moves halfway to forward KL, if there is any
way to go; at the next one practice ends, and the best student seen is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any, Literal

import torch

from pipeline.attempts import Attempt
from pipeline.head_loss import HEAD_ROWS
from pipeline.ladder import is_loop
from pipeline.tasks.extract import answer_key
from quant.stats import pass_at_k

ENTROPY_LEFT, PASS_AT_K_LOST = 0.8, 0.1
# Below this a divergence is forward KL.
LEAST_BETA = 0.1
# Logits of that many answers exist at a time.
ROWS_TOGETHER = 8

Look = dict[str, float]
Advice = Literal["go on", "shift", "stop"]


def look_at(answers: Sequence[Attempt], entropy_nats: float) -> Look:
    """What k sampled answers to each held-out problem show."""
    by_item: defaultdict[str, list[Attempt]] = defaultdict(list)
    for answer in answers:
        by_item[answer.problem.key].append(answer)
    k = min(map(len, by_item.values()))
    right = [sum(bool(a.verdict.passed) for a in item) for item in by_item.values()]
    counts = [len(item) for item in by_item.values()]
    pass_at_1 = mean(pass_at_k(n, c, 1) for n, c in zip(counts, right, strict=True))
    pass_at_most = mean(pass_at_k(n, c, k) for n, c in zip(counts, right, strict=True))
    distinct = [
        len({answer_key(a.verdict.extracted or a.completion.text) for a in item})
        for item in by_item.values()
    ]
    return {
        "problems": float(len(by_item)),
        "k": float(k),
        "entropy_nats": round(entropy_nats, 5),
        "distinct_answers": round(mean(distinct), 4),
        "pass_at_1": round(pass_at_1, 5),
        "pass_at_k": round(pass_at_most, 5),
        "gap": round(pass_at_most - pass_at_1, 5),
        "mean_tokens": round(mean(a.completion.completion_tokens for a in answers), 2),
        "clipped_share": round(mean(a.completion.finish == "length" for a in answers), 5),
        "end_share": round(mean(a.completion.finish == "stop" for a in answers), 5),
        "loop_share": round(mean(is_loop(a.completion.text) for a in answers), 5),
    }


def advice(looks: Sequence[Look], beta: float, shifted: bool) -> Advice:
    """What the last of `looks` says to do."""
    first, last = looks[0], looks[-1]
    surer = last["entropy_nats"] <= ENTROPY_LEFT * first["entropy_nats"]
    # Rounded: 0.3 less 0.1 is a little under 0.2.
    worse = round(max(x["pass_at_k"] for x in looks) - last["pass_at_k"], 5) >= PASS_AT_K_LOST
    if len(looks) < 2 or not (surer and worse):
        return "go on"
    return "shift" if beta > 0 and not shifted else "stop"


def shifted_beta(beta: float) -> float:
    """Halfway to forward KL."""
    return beta / 2 if beta / 2 >= LEAST_BETA else 0.0


def best_look(looks: Sequence[Look]) -> int:
    """Index of the look with the highest pass@1, the later one of equals."""
    return max(range(len(looks)), key=lambda i: (looks[i]["pass_at_1"], i))


@torch.inference_mode()
def mean_entropy_nats(
    engine: Any, answers: Sequence[Attempt], prompts: Sequence[list[int]]
) -> float:
    """Mean entropy (nats) of the next token over all answer tokens, at temperature 1."""
    rows = [
        (len(prompt), [*prompt, *answer.completion.ids])
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer.completion.ids
    ]
    rows.sort(key=lambda row: len(row[1]))  # a third of the time would be padding
    total, count = 0.0, 0
    for start in range(0, len(rows), ROWS_TOGETHER):
        part = rows[start : start + ROWS_TOGETHER]
        width = max(len(ids) for _, ids in part)
        # Padding on the right is later than all that attends, so its tokens do not matter.
        padded = [ids + [0] * (width - len(ids)) for _, ids in part]
        ids_BT = torch.tensor(padded, device=engine.model.device)
        hidden_BTD = engine.model.base_model(ids_BT).last_hidden_state
        head = engine.model.get_output_embeddings()
        for (first, ids), hidden_TD in zip(part, hidden_BTD, strict=True):
            # The logits of eight long answers would take more of a GPU than their training.
            for hidden_RD in hidden_TD[first - 1 : len(ids) - 1].split(HEAD_ROWS):
                logprobs_RV = head(hidden_RD).float().log_softmax(dim=-1)
                total += float(-(logprobs_RV.exp() * logprobs_RV).sum())
            count += len(ids) - first
    return total / max(1, count)

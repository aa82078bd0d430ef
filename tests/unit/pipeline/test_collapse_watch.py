"""What a look shows, and what the rule says of a row of looks."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline.attempts import Attempt
from pipeline.collapse_watch import advice, best_look, look_at, mean_entropy_nats, shifted_beta
from pipeline.records import Problem, Verdict
from serve.messages import Completion
from tests.unit.pipeline.tiny import checkpoint


def answer(item, passed, text="Answer: 1", finish="stop", extracted="1"):
    return Attempt(
        key="k",
        block=-1,
        problem=Problem(question=item, answer="1", family="f"),
        completion=Completion(
            text=text, finish=finish, prompt_tokens=1, completion_tokens=len(text)
        ),
        verdict=Verdict(passed=passed, reason="wrong", extracted=extracted, verifier="none"),
    )


def test_a_look_counts_what_is_there():
    loop = "ab" * 80
    look = look_at(
        [
            answer("first", True),
            answer("first", False, extracted="2"),
            answer("second", False, loop, "length", None),
            answer("second", False, loop, "length", None),
        ],
        0.25,
    )
    assert look == {
        "problems": 2.0,
        "k": 2.0,
        "entropy_nats": 0.25,
        "distinct_answers": 1.5,
        "pass_at_1": 0.25,
        "pass_at_k": 0.5,
        "gap": 0.25,
        "mean_tokens": 84.5,
        "clipped_share": 0.5,
        "end_share": 0.5,
        "loop_share": 0.5,
    }


def looks(*pairs):
    return [{"entropy_nats": e, "pass_at_k": k, "pass_at_1": k / 2} for e, k in pairs]


@pytest.mark.parametrize(
    ("seen", "beta", "shifted", "expected"),
    [
        (looks((1.0, 0.5)), 1.0, False, "go on"),
        (looks((1.0, 0.5), (0.5, 0.6)), 1.0, False, "go on"),
        (looks((1.0, 0.5), (0.9, 0.3)), 1.0, False, "go on"),
        (looks((1.0, 0.5), (0.8, 0.4)), 1.0, False, "shift"),
        (looks((1.0, 0.3), (0.8, 0.2)), 1.0, False, "shift"),
        (looks((1.0, 0.15), (0.8, 0.05)), 1.0, False, "shift"),
        (looks((1.0, 0.3), (0.8, 0.25)), 1.0, False, "go on"),
        (looks((1.0, 0.5), (0.8, 0.4)), 1.0, True, "stop"),
        (looks((1.0, 0.5), (0.8, 0.4)), 0.0, False, "stop"),
        (looks((1.0, 0.5), (0.9, 0.7), (0.7, 0.6)), 0.0, False, "stop"),
    ],
)
def test_the_rule(seen, beta, shifted, expected):
    assert advice(seen, beta, shifted) == expected


def test_halfway_to_forward_and_the_best_look():
    assert [shifted_beta(b) for b in (1.0, 0.5, 0.2, 0.1)] == [0.5, 0.25, 0.1, 0.0]
    assert best_look(looks((1.0, 0.4), (0.9, 0.6), (0.8, 0.6), (0.7, 0.2))) == 2


def test_entropy_is_of_every_token_that_answers(tmp_path):
    model = LlamaForCausalLM.from_pretrained(checkpoint(tmp_path, seed=3)).eval()
    prompts, ids = [[5, 6, 7], [8], [9, 10]], [(11, 12), (13, 14, 15, 16), ()]
    answers = [
        a.model_copy(update={"completion": a.completion.model_copy(update={"ids": own})})
        for a, own in zip([answer("q", True)] * 3, ids, strict=True)
    ]
    nats = []
    for prompt, own in zip(prompts, ids, strict=True):
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*prompt, *own]])).logits[0]
        for row in logits_TV[len(prompt) - 1 : len(prompt) + len(own) - 1]:
            nats.append(torch.distributions.Categorical(logits=row).entropy().item())
    assert len(nats) == 6
    found = mean_entropy_nats(SimpleNamespace(model=model), answers, prompts)
    assert found == pytest.approx(sum(nats) / 6, rel=1e-5)

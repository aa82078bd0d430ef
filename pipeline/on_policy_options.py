"""The recipe's section `[on_policy]`, and published settings as presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from serve.messages import Record

Method = Literal["none", "auto", "exact", "aligned", "span", "recover"]

# What the publications say of it; pairs, batch sizes and hours are theirs (docs/notes.md).
PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2306.13649: divergence between forward and reverse KL, student samples only (lambda 1).
    "gkd": {
        "method": "auto",
        "beta": 0.5,
        "learn_from": "all",
        "temperature": 1.0,
        "passes": 1,
        "replay": 0,
        "merge": 1.0,
    },
    # arXiv 2505.09388, section 4.5: the student samples, its logits move to the teacher's.
    "qwen3": {
        "method": "auto",
        "beta": 1.0,
        "learn_from": "all",
        "temperature": 1.0,
        "passes": 1,
        "replay": 0,
        "merge": 1.0,
    },
    # thinkingmachines.ai, On-Policy Distillation: reverse KL of the sampled token, 4 samples.
    "thinking-machines": {
        "method": "span",
        "learn_from": "all",
        "temperature": 1.0,
        "samples": 4,
        "passes": 1,
        "replay": 0,
        "merge": 1.0,
        "learning_rate": 5e-5,
    },
}


class OnPolicyOptions(Record):
    """Rounds ("blocks") of: the student attempts, the teacher grades, the student is updated."""

    preset: Literal["none", "gkd", "qwen3", "thinking-machines"] = Field(
        "none", description="published settings; what is said beside it goes before it"
    )
    method: Method = Field(
        "none", description="auto: exact for one vocabulary, else aligned, span or recover"
    )
    blocks: int = Field(3, ge=1, le=100_000, description="rounds of attempts, grades and updates")
    block_attempts: int = Field(112, ge=1, le=1_000_000, description="attempts a block")
    samples: int = Field(1, ge=1, le=1024, description="attempts at a problem in one block")
    temperature: float = Field(0.5, gt=0.0, le=2.0, description="of the attempts")
    max_tokens: int = Field(128, ge=1, le=131_072, description="attempt length, tokens")
    learn_from: Literal["wrong", "all"] = Field("wrong", description="attempts that are graded")
    right_as_examples: bool = Field(
        True, description="of wrong: the right ones are learnt as they stand, ungraded"
    )
    passes: int = Field(2, ge=1, le=64, description="over a block's lessons")
    batch_lessons: int = Field(8, ge=1, le=65_536, description="lessons an update")
    replay: int = Field(
        64, ge=0, le=1_000_000, description="SFT examples beside each pass; of exact, each block"
    )
    learning_rate: float = Field(5e-5, gt=0.0, le=1.0, description="peak, cosine to a tenth")
    merge: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        description="not exact: practised share of the last weights; SFT's is the rest",
    )
    beta: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="0 forward KL, 1 reverse KL, between: Jensen-Shannon; unsaid: 1 for exact, "
        "0 for aligned, as measured",
    )
    forward_above_nats: float | None = Field(
        None, ge=0.0, description="forward KL where the teacher's entropy is above this"
    )
    mistake_below: float = Field(
        0.1, gt=0.0, lt=1.0, description="teacher's probability that marks the first mistake"
    )
    top_tokens: int = Field(24, ge=1, le=1024, description="of the teacher, a place")
    advantage_limit_nats: float = Field(5.0, gt=0.0, description="span: clipped to it")
    ratio_limit: float = Field(0.2, gt=0.0, lt=1.0, description="span: of reused samples (PPO)")
    continuations: bool = Field(
        False, description="aligned, span: the lessons of recover beside those of the method"
    )
    continuation_temperature: float = Field(0.0, ge=0.0, le=2.0, description="recover: teacher's")
    watch_blocks: int = Field(3, ge=0, description="blocks between looks at held-out problems")
    watch_problems: int = Field(20, ge=1, le=100_000, description="held out of practice for it")
    watch_samples: int = Field(4, ge=2, le=256, description="answers to each")
    checkpoint_blocks: int = Field(
        4, ge=1, description="blocks between states on disk; later ones are computed again"
    )

    @property
    def looks(self) -> int:
        """At held-out problems: before practice, each `watch_blocks`, and at its end."""
        return sum(self.looks_after(done) for done in range(self.blocks + 1))

    def looks_after(self, done: int) -> bool:
        """True where a look is due after so many blocks."""
        every = self.watch_blocks
        return every > 0 and (done % every == 0 or done == self.blocks)

    def resolved(self, method: Method) -> OnPolicyOptions:
        """With the method that will run, and its divergence."""
        beta = (1.0 if method == "exact" else 0.0) if self.beta is None else self.beta
        return self.model_copy(update={"method": method, "beta": beta})

    @property
    def divergence_beta(self) -> float:
        """Of options that are resolved."""
        assert self.beta is not None
        return self.beta

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("preset") in PRESETS:
            return PRESETS[data["preset"]] | data
        return data

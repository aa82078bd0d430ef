"""Recipe: the whole intent of a run, one frozen section a stage. TOML in, resolved JSON out.

Every field has a bound and a sentence with its unit; the default is the setting we vetted.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.hardware_options import HardwareOptions
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.scale_options import ScaleOptions
from pipeline.training_options import TrainingOptions
from quant.gguf import FILE_TYPES
from serve.messages import Record
from serve.reasoning import OPEN_TAG, TagsName


class RunOptions(Record):
    name: str = Field("default", pattern=r"^[A-Za-z0-9._-]+$", description="folder below runs/")
    seed: int = Field(1, ge=0, lt=2**31, description="every random choice derives from it")


class FamilyOptions(Record):
    name: str = Field(description="a reasoning-gym family")
    options: dict[str, Any] = Field({}, description="the family's own settings")


class DatasetOptions(Record):
    name: str = Field(description="Hugging Face dataset, or a local folder")
    config: str | None = None
    split: str = "train"
    question: str = Field("question", description="column that holds the question")
    answer: str = Field("answer", description="column that holds the reference answer")
    wrong: tuple[str, ...] = Field(
        (),
        max_length=25,
        exclude_if=operator.not_,
        description="columns of wrong answers; all become choices with letters",
    )
    revision: str | None = Field(None, description="commit of the dataset")


class ProblemsOptions(Record):
    families: tuple[FamilyOptions, ...] = ()
    files: tuple[str, ...] = Field((), description="JSONL files of your own problems")
    datasets: tuple[DatasetOptions, ...] = ()
    train_per_family: int = Field(150, ge=1, le=10_000_000, description="training problems")
    eval_per_family: int = Field(76, ge=1, le=100_000, description="evaluation problems")
    gate_per_family: int = Field(
        0, ge=0, le=100_000, description="more problems for what the first left undecided"
    )
    practice_per_family: int = Field(
        0, ge=0, le=10_000_000, description="problems for on-policy refinement to practise on"
    )


class WorkedExample(Record):
    question: str
    reasoning: str
    answer: str
    family: str | None = Field(None, description="shown for this family's problems only")


class TeacherOptions(Record):
    engine: Literal["llama.cpp", "transformers", "vllm", "http"] = "llama.cpp"
    model: str = Field(description="model reference, or the server's model name for http")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="of the model file")
    encoding: Literal["as it is", "Q8_0", "F16", "auto"] = Field(
        "as it is", description="GGUF weights written again for speed; auto: by the processor"
    )
    slots: int = Field(32, ge=1, le=1024, description="sequences answered at a time")
    context_tokens: int = Field(1024, ge=64, le=1_048_576, description="prompt and answer, tokens")
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        exclude_if=partial(operator.eq, 1),  # what is not asked for is in no fingerprint
        description="vllm: GPUs that hold one copy of the weights together",
    )
    data_parallel: int = Field(
        1,
        ge=1,
        le=64,
        exclude_if=partial(operator.eq, 1),
        description="vllm: copies of the weights, on tensor_parallel GPUs each",
    )
    memory_share: float = Field(
        0.9,
        gt=0.0,
        le=1.0,
        exclude_if=partial(operator.eq, 0.9),
        description="vllm: of each GPU's memory, for weights and what was read",
    )
    practice_memory_share: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        exclude_if=partial(operator.eq, 0.5),
        description="vllm: the same while the student practises beside it",
    )
    base_url: str | None = Field(None, description="http: the server's /v1 address")
    api_key_env: str = Field("RETORT_API_KEY", description="http: variable that holds the key")
    token_budget: int | None = Field(
        None, ge=1, description="http: completion tokens a stage, at each start"
    )
    license: str = Field("unknown", description="of the model, for the bundle's notice")
    system: str = Field(description="system prompt of the teacher")
    examples: tuple[WorkedExample, ...] = Field((), description="worked examples in its prompt")
    thinks: bool = Field(
        False,
        exclude_if=operator.not_,
        description="opens <think> unasked, as Qwen3: attempts are graded with their tags",
    )

    @property
    def writes_tags(self) -> bool:
        return self.thinks or any(OPEN_TAG in example.reasoning for example in self.examples)

    @model_validator(mode="after")
    def _only_vllm_is_spread(self) -> TeacherOptions:
        if self.engine != "vllm" and self.tensor_parallel * self.data_parallel > 1:
            raise ValueError(
                f"tensor_parallel and data_parallel need teacher.engine vllm, not {self.engine}"
            )
        return self


class TracesOptions(Record):
    samples: int = Field(
        1, ge=0, le=1024, description="answers a problem; 0: imported traces alone"
    )
    temperature: float = Field(0.3, ge=0.0, le=2.0)
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    max_tokens: int = Field(160, ge=1, le=131_072, description="answer length, tokens")


class CurateOptions(Record):
    keep: Literal["correct", "answered", "everything"] = Field(
        "correct",
        description="answered: right or wrong, by the other filters (OpenThoughts3); "
        "everything: no filter at all",
    )
    min_tokens: int = Field(4, ge=0, description="shortest trace, teacher tokens")
    max_tokens: int = Field(100_000, ge=1, description="longest trace, teacher tokens")
    near_duplicate: float = Field(
        0.95, ge=0.0, le=1.0, description="drop traces of a problem this similar, 1 = exact only"
    )
    per_problem: int = Field(4, ge=1, description="most traces kept a problem")
    scripts: tuple[str, ...] = Field(("LATIN",), description="writing systems a trace may use")
    select: Literal["all", "s1"] = Field(
        "all", description="s1: difficult and diverse ones, see pipeline/selection.py"
    )
    select_traces: int = Field(1000, ge=1, description="s1: how many")
    decontaminate: bool = Field(
        False,
        exclude_if=operator.not_,  # what is off is in no fingerprint
        description="drop traces that share 13 tokens in a row, more than a template, with an "
        "evaluation item",
    )


class GeneralSet(Record):
    name: str = Field(description="Hugging Face dataset, or a local folder")
    config: str | None = None
    split: str = "train"
    prompt: str = Field("prompt", description="column that holds the prompt")
    response: str | None = Field(None, description="column of the response; none: the teacher's")
    revision: str | None = Field(None, description="commit of the dataset")


class GeneralOptions(Record):
    """General data beside the traces; none without files and datasets."""

    files: tuple[str, ...] = Field((), description='JSONL of {"prompt", "response"}, or built in')
    datasets: tuple[GeneralSet, ...] = ()
    share: float = Field(0.25, gt=0.0, lt=1.0, description="of all examples, at most")
    system: str = Field("You are a helpful assistant.", description="asked and learnt with")
    max_tokens: int = Field(96, ge=1, le=131_072, description="teacher's answer, tokens")

    @property
    def wanted(self) -> bool:
        return bool(self.files or self.datasets)


class StudentOptions(Record):
    model: str = Field(description="model reference")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="of the model file")
    license: str = Field("unknown", description="of the model, for the bundle's notice")
    system: str = Field(description="system prompt in training, evaluation and chat")
    system_brief: str = Field(
        "Give the answer only.", description="the same where a view teaches answers alone"
    )

    tags: TagsName = Field("think", description="around the reasoning it is taught to write")

    def brief(self) -> StudentOptions:
        """The student asked for an answer without reasoning."""
        return self.model_copy(update={"system": self.system_brief})


class SuperviseOptions(Record):
    view: Literal[
        "answer", "steps", "full", "full+answer", "multitask", "short", "errors", "plain", "style"
    ] = Field("full", description="which part of a trace is learned, see pipeline/views.py")
    traces: int | None = Field(None, ge=1, description="most traces used, drawn; none: all")
    tokens: int | None = Field(None, ge=1, description="most supervised tokens; none: all")
    explain_share: float = Field(
        1.0, gt=0.0, le=1.0, description="multitask: of traces whose reasoning is a task too"
    )
    short_tokens: int = Field(64, ge=1, description="short: longest completion, student tokens")
    step_drop_nats: float = Field(
        0.1, ge=0.0, description="steps: a line stays when the answer loses more without it"
    )
    step_scorer: Literal["student", "teacher"] = Field(
        "student", description="steps: whose probability of the answer is measured"
    )


class SftOptions(Record):
    method: Literal["full", "lora", "qlora"] = Field(
        "full", description="qlora: adapters over weights of 4 bits (bitsandbytes)"
    )
    epochs: int = Field(4, ge=1, le=1000, description="passes over the examples")
    learning_rate: float = Field(3e-4, gt=0.0, le=1.0, description="peak, cosine to a tenth")
    warmup_share: float = Field(0.05, ge=0.0, lt=1.0, description="of all steps")
    batch_examples: int = Field(16, ge=1, le=65_536, description="examples a step")
    max_tokens: int = Field(512, ge=16, le=1_048_576, description="longer examples are dropped")
    weight_decay: float = Field(0.0, ge=0.0, le=1.0)
    checkpoint_steps: int = Field(50, ge=1, description="steps between checkpoints")
    lora_rank: int = Field(32, ge=1, le=1024)
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on CUDA or a CPU that multiplies it, else float32"
    )


class TensorOverride(Record):
    pattern: str = Field(description="regular expression on GGUF tensor names")
    type: str = Field(description="tensor type, as Q8_0")


class GgufOptions(Record):
    types: tuple[str, ...] = Field(
        ("F16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0"), min_length=1, description="one file each"
    )
    imatrix_tokens: int = Field(
        4096, ge=0, le=100_000_000, description="calibration, for the importance matrix; 0: none"
    )
    gptq_tokens: int = Field(
        8192, ge=0, le=100_000_000, description="calibration, to round on; 0: llama.cpp's own"
    )
    overrides: tuple[TensorOverride, ...] = Field((), description="in every file of `types`")
    bits: tuple[float, ...] = Field(
        (), description="a file each of at most so many bits a weight, its types chosen by effect"
    )
    sensitivity_tokens: int = Field(
        512, ge=16, le=1_000_000, description="calibration, to measure that effect on"
    )

    @model_validator(mode="after")
    def _can_be_written(self) -> GgufOptions:
        for kind in sorted(set(self.types) - set(FILE_TYPES)):
            known = ", ".join(sorted(FILE_TYPES))
            raise ValueError(f"unknown GGUF type {kind!r}; there are {known}")
        if self.bits and not self.imatrix_tokens:
            raise ValueError("bits need imatrix_tokens above 0")
        return self


class OnnxOptions(Record):
    precisions: tuple[Literal["fp32", "fp16", "int8", "int4"], ...] = Field(
        ("int8", "int4"), description="one folder each"
    )
    exporter: Literal["genai", "optimum"] = Field(
        "genai", description="optimum: for architectures that onnxruntime-genai's builder lacks"
    )
    provider: Literal["cpu", "cuda", "dml"] = Field("cpu", description="what will run them")
    gptq_tokens: int = Field(
        8192, ge=0, le=100_000_000, description="calibration, to round int4 on; 0: builder's own"
    )

    @model_validator(mode="after")
    def _optimum_writes_for_the_cpu(self) -> OnnxOptions:
        if self.exporter == "optimum" and (self.provider != "cpu" or "fp16" in self.precisions):
            raise ValueError("exporter optimum writes fp32, int8 and int4 for provider cpu")
        return self


class EvaluateOptions(Record):
    max_tokens: int = Field(160, ge=1, le=131_072, description="answer length, tokens")
    k: int = Field(4, ge=1, le=256, description="samples for pass@k")
    k_items: int = Field(64, ge=0, description="items that get k samples")
    temperature: float = Field(0.7, gt=0.0, le=2.0, description="for pass@k; pass@1 is greedy")
    top_p: float = Field(0.95, gt=0.0, le=1.0, description="for pass@k")
    slots: int = Field(64, ge=1, le=1024, description="sequences answered at a time")
    waits: int = Field(
        0, ge=0, le=16, description='times the end of thinking is put off by "Wait" (s1)'
    )

    @property
    def greedy(self) -> EvaluateOptions:
        """The same without samples."""
        return self.model_copy(update={"k_items": 0})

    @property
    def plain(self) -> EvaluateOptions:
        """Nothing but what decides whether a model can solve a problem: no samples, no waits."""
        return EvaluateOptions(max_tokens=self.max_tokens, slots=self.slots, k_items=0)


class GateOptions(Record):
    margin_points: float = Field(3.0, gt=0.0, le=100.0, description="drop that may be shipped")
    conversations: int = Field(200, ge=16, le=100_000, description="compared token by token")
    divergence_tokens: int = Field(3000, ge=100, le=1_000_000, description="of held-out answers")
    choose: Literal["smallest", "fastest", "closest"] = Field(
        "smallest", description="which of the artifacts that pass is shipped"
    )


class Recipe(Record):
    """All sections. `pipeline/recipe_files.py` reads one from TOML."""

    run: RunOptions = RunOptions()
    problems: ProblemsOptions
    teacher: TeacherOptions
    traces: TracesOptions = TracesOptions()
    general: GeneralOptions = GeneralOptions()
    curate: CurateOptions = CurateOptions()
    student: StudentOptions
    supervise: SuperviseOptions = SuperviseOptions()
    sft: SftOptions = SftOptions()
    on_policy: OnPolicyOptions = OnPolicyOptions()
    gguf: GgufOptions = GgufOptions()
    onnx: OnnxOptions = OnnxOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    gate: GateOptions = GateOptions()
    scale: ScaleOptions = ScaleOptions()
    hardware: HardwareOptions = Field(HardwareOptions(), exclude_if=HardwareOptions.is_default)
    training: TrainingOptions = Field(
        TrainingOptions(),
        exclude_if=TrainingOptions.is_default,  # what is not used is in no fingerprint
    )

    @property
    def asked_student(self) -> StudentOptions:
        """The student in the prompt that its supervision taught it to answer."""
        brief = self.supervise.view in ("answer", "multitask")
        return self.student.brief() if brief else self.student

    @model_validator(mode="after")
    def _practice_needs_problems(self) -> Recipe:
        wanted, given = self.on_policy, self.problems.practice_per_family
        if wanted.method != "none" and not given:
            raise ValueError(f"on_policy.method {wanted.method} needs practice_per_family above 0")
        if wanted.method != "none" and self.student.tags != "think":
            raise ValueError(f"practice reads <think> tags only, not {self.student.tags}")
        if wanted.method != "none" and self.asked_student != self.student:
            raise ValueError(
                f"practice teaches reasoning, which supervise.view {self.supervise.view} does not "
                "ask for"
            )
        return self

    @model_validator(mode="after")
    def _training_can_be_spread(self) -> Recipe:
        plan = self.training
        if plan.spread and self.sft.method == "qlora":
            raise ValueError("sft.method qlora trains in one process: training.strategy none")
        batches = [("sft.batch_examples", self.sft.batch_examples)]
        if self.on_policy.method == "exact":
            batches.append(("on_policy.batch_lessons", self.on_policy.batch_lessons))
        for field, size in batches:
            if not plan.divides(size):
                at_a_time, _ = plan.steps_of(size)
                raise ValueError(
                    f"{field} {size} does not divide over {plan.processes} processes "
                    f"that read {at_a_time} at a time"
                )
        return self

    @model_validator(mode="after")
    def _an_actor_holds_its_teacher(self) -> Recipe:
        wanted = self.teacher.tensor_parallel * self.teacher.data_parallel
        here = self.hardware.gpus and self.teacher.engine == "vllm"
        if self.scale.executor == "ray" and here and self.scale.gpus_per_actor < wanted:
            raise ValueError(
                f"scale.gpus_per_actor {self.scale.gpus_per_actor:g} is less than the teacher's "
                f"{wanted} GPUs"
            )
        return self

    @model_validator(mode="after")
    def _one_process_counts_a_budget(self) -> Recipe:
        if self.scale.executor == "ray" and self.teacher.token_budget is not None:
            raise ValueError("teacher.token_budget is counted by one process: scale.executor local")
        return self

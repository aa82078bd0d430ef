"""What a run will take, from its recipe; told without a network, for every recipe there is."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Gemma3Config, MambaConfig, Qwen3Config

from pipeline import forecast as forecasts
from pipeline import forecast_memory
from pipeline.forecast import forecast, work_of
from pipeline.recipe_files import FOLDER, find_recipe, load_recipe
from pipeline.sampler import sampling_slots
from serve.engines.transformers import rows_that_fit

ROOT = Path(__file__).parent.parent.parent.parent

PRESETS = {
    "gpu-small": [
        "forecast for 1 GPU of 24 GiB and 165 TFLOP/s",
        "6,000 answers of about 1,434 tokens",
        "room for 20 whole sequences: fits",
        # Of each trace all of it, and its answer alone.
        "8,400 examples, 13.1 M tokens",
        "5,120 attempts, 1.8 M tokens",
        # Most of it is transformers' evaluation: three students, 19 blocks of at most 32 answers.
        "2.0 h on 1 GPU",
        "in all         5.9 h, 6 GPU-hours, 5 of them at work",
    ],
    "gpu-h100": [
        "forecast for 1 GPU of 80 GiB and 989 TFLOP/s",
        "20,000 answers of about 2,867 tokens",
        "28,000 examples, 83.9 M tokens",
        "25,600 attempts, 36.7 M tokens",
        "in all         15.1 h, 15 GPU-hours, 10 of them at work",
    ],
    "cluster": [
        "forecast for 8 GPUs of 80 GiB and 989 TFLOP/s",
        "100,000 answers of about 5,734 tokens",
        "8.6 h on 8 GPUs",
        "140,000 examples, 821.0 M tokens",
        "38,400 attempts, 55.1 M tokens",
        "1.5 h on 96 cores",
        "2 students, at most 600 more items",
        "in all         21.3 h, 170 GPU-hours, 121 of them at work",
    ],
}

# In a process of its own: an audit hook stays for good.
OFFLINE = """
import contextlib, io, sys
NETWORK = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto"}
def refuse(event, given):
    if event in NETWORK or event == "socket.connect" and not isinstance(given[1], (str, bytes)):
        raise RuntimeError(f"network: {event} {given[1:]}")
sys.addaudithook(refuse)
from pipeline.all import main
for recipe in sys.argv[1:]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main([recipe, "--run", "nowhere", "--dry-run"])
    lines = said.getvalue().splitlines()
    print(code, sum(line.endswith("to do") for line in lines) > 8, any(
        line.startswith("in all") for line in lines), recipe)
print("torch" in sys.modules)
"""


def test_a_dry_run_of_every_recipe_asks_no_network(tmp_path):
    recipes = sorted(str(path) for path in FOLDER.rglob("*.toml"))
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *recipes],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.stderr == ""
    *said, torch = done.stdout.splitlines()
    assert said == [f"0 True True {recipe}" for recipe in recipes]
    assert torch == "False"
    assert not (ROOT / "nowhere").exists()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_forecast_and_fit(name):
    text = "\n".join(forecast(load_recipe(find_recipe(name))))
    assert [line for line in PRESETS[name] if line not in text] == []
    assert "warning" not in text
    assert text.count(": fits") == 3


def test_what_does_not_fit_is_said_with_value_and_limit():
    wishes = ("teacher.model=hub:Qwen/Qwen3-32B",)
    lines = forecast(load_recipe(find_recipe("gpu-small"), wishes))
    assert "warning: 02-traces wants 63.8 GiB where 21.6 GiB are" in lines


def test_more_gpus_than_there_are_and_unknown_models_are_said():
    wishes = ("hardware.gpus=4", "student.model=hub:someone/secret")
    lines = forecast(load_recipe(find_recipe("cluster"), wishes))
    assert "warning: the recipe uses 8 GPUs, hardware.gpus is 4" in lines
    assert "warning: the size of student secret is unknown here; its part is left out" in lines


def test_training_counts_six_operations_a_weight_and_token_and_eight_with_layers_again():
    recipe = load_recipe(find_recipe("gpu-small"))
    again, kept = (
        recipe.model_copy(
            update={
                "training": recipe.training.model_copy(update={"gradient_checkpointing": wanted})
            }
        )
        for wanted in (True, False)
    )
    seconds = [_sft_seconds(r) for r in (again, kept)]
    assert seconds[0] / seconds[1] == pytest.approx(8 / 6)
    # 595.8 M weights, 12.55 M tokens and 0.88 of answers alone, a third of 165 TFLOP/s.
    assert seconds[1] == pytest.approx(6 * 595.8e6 * 13.13e6 / (165e12 * 0.35), rel=0.001)


def _sft_seconds(recipe) -> float:
    work = forecasts.work_of(recipe)
    return next(line.seconds for line in forecasts.lines_of(work) if line.stage == "04-sft")


def test_the_price_is_that_of_all_gpus_for_all_hours():
    lines = forecast(load_recipe(find_recipe("cluster"), ("hardware.price_per_gpu_hour=2.5",)))
    assert (
        "in all         21.3 h, 170 GPU-hours, 121 of them at work; 426 at the price given" in lines
    )


def test_files_are_examined_on_the_processors_that_actors_have():
    wishes = ("scale.cpus_per_actor=8",)
    text = "\n".join(forecast(load_recipe(find_recipe("cluster"), wishes)))
    assert "4.5 h on 32 cores" in text


def test_imported_traces_are_not_counted():
    lines = forecast(load_recipe(find_recipe("default"), ("traces.samples=0",)))
    assert "02-traces      nothing is asked" in lines
    (sft,) = (line for line in lines if line.startswith("04-sft"))
    assert sft.startswith("04-sft         imported traces, not counted     ")


@pytest.mark.parametrize(
    ("view", "examples"),
    [("full", "336"), ("answer", "336"), ("full+answer", "672"), ("multitask", "672")],
)
def test_a_view_may_make_two_examples_of_a_trace(view, examples):
    wishes = (f'supervise.view="{view}"', 'on_policy.method="none"')
    text = "\n".join(forecast(load_recipe(find_recipe("default"), wishes)))
    assert f"04-sft         {examples} examples, " in text


def test_copies_of_a_teacher_grade_too():
    wishes = ("teacher.data_parallel=2", "hardware.gpus=2")
    recipe = load_recipe(find_recipe("gpu-h100"), wishes)
    one, two = (
        next(line for line in forecasts.lines_of(work_of(r)) if line.stage == "05-on-policy")
        for r in (load_recipe(find_recipe("gpu-h100")), recipe)
    )
    assert (one.devices, two.devices) == (1, 2)
    assert two.seconds < one.seconds


@pytest.mark.parametrize(
    ("gigabytes", "tokens", "slots"), [(24, 1024, 17), (80, 4096, 17), (80, 1024, 58), (1, 9999, 1)]
)
def test_attempts_at_a_time_are_those_whose_keys_and_values_fit(gigabytes, tokens, slots):
    config = Qwen3Config(
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        num_hidden_layers=28,
        hidden_size=1024,
    )
    assert sampling_slots(gigabytes * 2**30, config, tokens) == slots


def test_a_model_of_images_and_text_keeps_what_its_text_keeps():
    text = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
    config = Gemma3Config(text_config=text | {"num_hidden_layers": 34, "hidden_size": 2560})
    # 139,264 bytes a token.
    assert rows_that_fit(139_264 * 1000 * 3.5, config, 1000) == 3
    assert rows_that_fit(1e9, MambaConfig(), 1000) is None


def test_attempts_of_transformers_take_as_long_as_the_longest_of_each_block():
    recipe = load_recipe(find_recipe("gpu-h100"), ('training.sampler="transformers"',))
    lines = {line.stage: line for line in forecasts.lines_of(work_of(recipe))}
    # 17 of 256 at a time, to 4,096 tokens, 28 layers of 1.1 ms a token, 100 blocks.
    sampling_s = math.ceil(256 / 17) * 4096 * 28 * 1.1e-3 * 100
    assert lines["05-on-policy"].seconds > sampling_s
    assert lines["05-on-policy"].seconds == pytest.approx(sampling_s, rel=0.05)


def test_vllm_beside_the_training_has_memory_of_its_own():
    recipe = load_recipe(find_recipe("gpu-h100"))
    own, shared = (
        next(
            line.memory.wanted_gib
            for line in forecasts.lines_of(work_of(r))
            if line.stage[1] == "5"
        )
        for r in (
            load_recipe(find_recipe("gpu-h100"), ("training.sampler_gpus=[1]",)),
            recipe,
        )
    )
    assert shared - own == pytest.approx(0.14 * 80)


def test_a_share_that_vllm_would_not_start_in_is_said():
    wishes = ("training.sampler_memory_share=0.03", "teacher.practice_memory_share=0.2")
    told = [x for x in forecast(load_recipe(find_recipe("gpu-h100"), wishes)) if "warning" in x]
    assert told == [
        "warning: teacher.practice_memory_share 0.2 is 16.0 GiB, weights, one sequence and vLLM "
        "itself want 18.3 GiB",
        "warning: training.sampler_memory_share 0.03 is 2.4 GiB, weights, one sequence and vLLM "
        "itself want 6.2 GiB",
    ]


def test_vllm_on_a_processor_is_counted_in_operations():
    plain, vllm = (
        next(
            line.seconds
            for line in forecasts.lines_of(work_of(load_recipe(find_recipe("default"), wishes)))
            if line.stage == "05-on-policy"
        )
        for wishes in ((), ('training.sampler="vllm"',))
    )
    assert plain == vllm


def test_grades_of_a_whole_practice_lie_on_the_disk():
    recipe = load_recipe(find_recipe("gpu-h100"))
    without = recipe.model_copy(
        update={"on_policy": recipe.on_policy.model_copy(update={"learn_from": "wrong"})}
    )
    tokens = 100 * 256 * 0.35 * 4096
    disk_gb = [
        float(next(line for line in forecast(r) if line.startswith("disk")).split()[1])
        for r in (recipe, without)
    ]
    assert disk_gb[0] - disk_gb[1] == pytest.approx(0.5 * tokens * 27 * 24 / 1e9, abs=0.1)


def test_the_teacher_is_forecast_as_the_copy_that_answers():
    recipe = load_recipe(find_recipe("smoke"), ('teacher.encoding="Q8_0"',))
    assert work_of(recipe).teacher.bits == 8.51


def line_of(stage, name, *wishes):
    work = work_of(load_recipe(find_recipe(name), wishes))
    return next(line for line in forecasts.lines_of(work) if line.stage == stage)


EXACT = ('on_policy.method="exact"', 'training.sampler="transformers"')
EXACT_TEACHER = ('teacher.engine="transformers"', 'teacher.model="hub:Qwen/Qwen3-8B"')


def test_attempts_of_exact_are_written_update_by_update():
    few, many = (
        line_of("05-on-policy", "gpu-h100", *EXACT, *EXACT_TEACHER, f"on_policy.batch_lessons={n}")
        for n in (8, 16)
    )
    # 256 attempts in 32 rounds instead of 16, of 4,096 tokens, 28 layers of 1.1 ms, 100 blocks.
    assert few.seconds - many.seconds == pytest.approx(16 * 4096 * 28 * 1.1e-3 * 100)


def test_a_teacher_in_transformers_writes_block_by_block():
    teacher = ('teacher.engine="transformers"', "teacher.slots=16", "teacher.data_parallel=1")
    line = line_of("02-traces", "gpu-h100", *teacher, 'teacher.model="hub:Qwen/Qwen3-8B"')
    # 20,000 answers, 16 at a time, to 8,192 tokens, 36 layers of 1.1 ms.
    assert line.seconds == pytest.approx(20_000 / 16 * 8192 * 36 * 1.1e-3, rel=0.01)


def test_a_teacher_in_llama_cpp_answers_on_processors():
    embedded = load_recipe(find_recipe("default")).teacher.model
    wishes = ('teacher.engine="llama.cpp"', f'teacher.model="{embedded}"')
    line = line_of("02-traces", "gpu-small", *wishes)
    assert (line.on_cpu, line.devices) == (True, 0)
    assert line.memory.limit_gib == pytest.approx(forecast_memory.machine_gib())
    # 1.5 B weights, 6,000 answers of 1,434 tokens and questions of 60, 16 cores.
    operations = 2 * line_work(wishes).teacher.multiplied * 6000 * (0.35 * 4096 + 60)
    assert line.seconds == pytest.approx(operations / (16 * 0.2e12 * 0.4))


def line_work(wishes):
    return work_of(load_recipe(find_recipe("gpu-small"), wishes))


def test_training_has_all_cores_whatever_actors_have():
    ray = ('scale.executor="ray"', "hardware.cores=16")
    for stage in ("04-sft", "05-on-policy"):
        assert line_of(stage, "default", *ray).seconds == pytest.approx(
            line_of(stage, "default", "hardware.cores=16").seconds
        )
    alone = line_of("02-traces", "default", "hardware.cores=16").seconds
    assert line_of("02-traces", "default", *ray).seconds == pytest.approx(16 * alone)
    # A cluster's other machines count as well, where nothing is said of cores.
    cluster = ('scale.executor="ray"', 'scale.address="auto"', "scale.actors=64")
    fewer = line_of("02-traces", "default", *cluster[:2], "scale.actors=32").seconds
    assert line_of("02-traces", "default", *cluster).seconds == pytest.approx(fewer / 2)


@pytest.mark.parametrize(
    ("wishes", "bytes_a_weight"),
    [
        (('on_policy.method="none"',), 36),
        ((), 36),
        (('sft.method="lora"', 'on_policy.method="none"'), 0.6),
        (('sft.method="lora"',), 24),
    ],
)
def test_states_to_resume_from_are_counted_as_many_as_lie_there_at_once(wishes, bytes_a_weight):
    recipe = load_recipe(find_recipe("default"), wishes)
    weights, files = 10**9, len(recipe.gguf.types) + len(recipe.onnx.precisions)
    found = forecast_memory.disk_gb(recipe, weights)
    assert found == pytest.approx(bytes_a_weight + (2 + files) * 2)


def test_models_of_a_hub_are_counted_apart():
    def disk(name):
        lines = forecast(load_recipe(find_recipe(name)))
        return next(line for line in lines if line.startswith("disk"))

    assert disk("cluster").endswith(", 69.0 GB of models in the cache besides")
    assert disk("default").endswith(" GB at most while it runs")

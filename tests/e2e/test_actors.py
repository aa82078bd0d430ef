"""Real engines as actors of a Ray cluster of two nodes, one of which is killed on the way."""

import os
from contextlib import contextmanager
from functools import partial

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.asking import ask
from pipeline.kept_answers import Answer
from pipeline.progress import Progress
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.run import Context
from pipeline.scale_options import ScaleOptions
from pipeline.store import read_records
from serve.engines.child import load_in_child
from serve.errors import EngineError
from serve.messages import Completion, Message, Request, Sampling
from serve.models import resolve_model
from tests.processes import below

RECIPE = load_recipe(find_recipe("smoke"))
REQUESTS = [
    Request(
        key=f"{a:03}",
        messages=(
            Message(role="system", content="Answer briefly."),
            Message(role="user", content=f"What is {a} plus {a + 3}?"),
        ),
        sampling=Sampling(temperature=1.0, seed=a, max_tokens=32),
    )
    for a in range(64)
]


@pytest.fixture(scope="module")
def open_student():
    path = resolve_model(RECIPE.student.model, RECIPE.student.sha256)
    return partial(load_in_child, "llama.cpp", path=path, slots=4, context_tokens=256, threads=1)


@pytest.fixture(scope="module")
def unspread(open_student, tmp_path_factory):
    """What one engine in this process's own child says."""
    log = tmp_path_factory.mktemp("unspread") / "answers.jsonl"
    return ask(open_student, REQUESTS, log, "one engine", Context(0, Progress()))


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 1, "include_dashboard": False, "wait": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.second = nodes.add_node(num_cpus=1, wait=False)
    nodes.wait_for_nodes(timeout=300)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def over(cluster) -> Context:
    scale = ScaleOptions(executor="ray", address=cluster.address, actors=2, batch_requests=8)
    return Context(0, Progress(), scale=scale)


class Killing(Progress):
    """Calls `kill` when so many answers are there."""

    def __init__(self, kill, after: int) -> None:
        super().__init__()
        self.kill, self.left = kill, after

    @contextmanager
    def bar(self, label, total):
        with super().bar(label, total) as shown:
            advance = shown.advance

            def counted(count: int = 1) -> None:
                advance(count)
                self.left -= count
                if self.left == 0:
                    self.kill()

            shown.advance = counted
            yield shown


def test_a_lost_node_costs_what_it_was_answering_and_nothing_is_doubled(
    cluster, open_student, unspread, tmp_path
):
    log = tmp_path / "answers.jsonl"
    killing = Killing(lambda: cluster.remove_node(cluster.second, allow_graceful=False), after=20)
    context = Context(0, killing, scale=over(cluster).scale)
    assert ask(open_student, REQUESTS, log, "two actors", context) == unspread
    assert killing.left == 20 - len(REQUESTS)
    assert sorted(a.key for a in read_records(log, Answer)) == [r.key for r in REQUESTS]


def test_a_lost_engine_is_opened_again_by_its_actor(cluster, open_student, unspread, tmp_path):
    log = tmp_path / "answers.jsonl"

    def kill_an_engine():
        # Below this process are its cluster's nodes, below those the actors.
        below("serve.engines.child")[0].kill()

    context = Context(0, Killing(kill_an_engine, after=10), scale=over(cluster).scale)
    assert ask(open_student, REQUESTS, log, "two actors", context) == unspread
    assert sorted(a.key for a in read_records(log, Answer)) == [r.key for r in REQUESTS]


def test_an_engine_reads_the_environment_of_the_run(cluster, monkeypatch, tmp_path):
    """The cluster was there before it, and its nodes know nothing of it."""
    names = ("RETORT_API_KEY", "MY_KEY", "NOT_ASKED_FOR", "VLLM_HOST_IP")
    for name in names:
        monkeypatch.setenv(name, name.lower())

    class Telling:
        name, batch_invariant, block = "telling", True, 1

        def __init__(self):
            self.told = " ".join(str(os.environ.get(name)) for name in names)

        def generate(self, requests):
            for request in requests:
                said = {"text": self.told, "finish": "stop"}
                yield request.key, Completion(**said, prompt_tokens=1, completion_tokens=1)

        def close(self):
            pass

    scale = over(cluster).scale.model_copy(update={"environment": ("MY_KEY",)})
    context = Context(0, Progress(), scale=scale)
    answers = ask(Telling, REQUESTS[:2], tmp_path / "answers.jsonl", "two actors", context)
    assert {a.text for a in answers.values()} == {"retort_api_key my_key None None"}


def test_a_machine_that_no_actor_fits_on_is_said(open_student, tmp_path):
    scale = ScaleOptions(executor="ray", actors=1, gpus_per_actor=64)
    context = Context(0, Progress(), scale=scale)
    wanted = "an actor wants 1 processors and 64 GPUs of one node, this machine has"
    with pytest.raises(EngineError, match=wanted):
        ask(open_student, REQUESTS, tmp_path / "answers.jsonl", "an actor", context)


def test_the_reason_an_engine_cannot_answer_reaches_the_user(cluster, tmp_path):
    broken = partial(load_in_child, "llama.cpp", path=tmp_path / "none.gguf", slots=1)
    with pytest.raises(EngineError, match=r"none\.gguf"):
        ask(broken, REQUESTS, tmp_path / "answers.jsonl", "two actors", over(cluster))


def test_a_cluster_that_is_not_there_is_named(open_student, tmp_path):
    scale = ScaleOptions(executor="ray", address="127.0.0.1:1", actors=2)
    context = Context(0, Progress(), scale=scale)
    with pytest.raises(EngineError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        ask(open_student, REQUESTS, tmp_path / "answers.jsonl", "two actors", context)

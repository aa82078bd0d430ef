"""What an actor says of its shares, without a cluster around it."""

import json
import re
import socket
from contextlib import nullcontext

import pytest
import ray

from pipeline import actors
from pipeline.actors import Answering, _check_reachable, _check_room, spread
from pipeline.scale_options import ScaleOptions
from serve.errors import EngineEnded, EngineError, UsageError
from serve.messages import Completion, Message, Request

DONE = Completion(text="4", finish="stop", prompt_tokens=1, completion_tokens=1)


class Failing:
    """Answers one request, then raises `error`, if any."""

    name, batch_invariant, block = "failing", True, 1

    def __init__(self, error):
        self.error, self.closed = error, False

    def generate(self, requests):
        for request in requests:
            yield request.key, DONE
            if self.error:
                raise self.error

    def close(self):
        self.closed = True


def share(*keys):
    turns = (Message(role="user", content="2 + 2"),)
    requests = [Request(key=key, messages=turns).model_dump(mode="json") for key in keys]
    return {"share": json.dumps(requests), "wanted": list(keys)}


def said(actor, *keys):
    rows = list(actor(share(*keys)))
    return [{k: v for k, v in row.items() if v and k != "completion"} for row in rows]


def test_an_engine_whose_process_ended_is_opened_again_for_the_next_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended, well = Failing(EngineEnded("ended with signal SIGKILL")), Failing(None)
    engines = iter([ended, well])
    actor = Answering(lambda: next(engines), str(tmp_path), {})
    assert said(actor, "a", "b") == [{"key": "a"}, {"lost": "ended with signal SIGKILL"}]
    assert ended.closed
    assert said(actor, "c", "d") == [{"key": "c"}, {"key": "d"}]


@pytest.mark.parametrize(
    ("error", "row"),
    [
        (EngineError("no", hint="try"), {"error": "no", "hint": "try"}),
        (MemoryError("of the GPU"), {"error": "MemoryError: of the GPU"}),
    ],
)
def test_what_another_engine_would_meet_too_ends_the_run(error, row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    actor = Answering(lambda: Failing(error), str(tmp_path), {})
    assert said(actor, "a") == [{"key": "a"}, row]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("ray://127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
    ],
)
def test_an_address_is_knocked_at_however_it_is_written(address, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        try:
            listening.bind((host, 0))
        except OSError:
            pytest.skip(f"no {host} here")
        listening.listen()
        port = listening.getsockname()[1]
        _check_reachable(f"{address}:{port}")
    with pytest.raises(EngineError, match=re.escape(f"no Ray cluster at {address}:{port}: ")):
        _check_reachable(f"{address}:{port}")
    _check_reachable("auto")
    _check_reachable(None)


def node(alive, **resources):
    return {"Alive": alive, "Resources": resources}


def test_a_cluster_without_room_is_refused_here_and_told_of_elsewhere(capsys):
    nodes = [node(True, CPU=8.0, GPU=1.0), node(True, CPU=2.0), node(False, CPU=64.0, GPU=8.0)]
    wanted = ScaleOptions(executor="ray", gpus_per_actor=2)
    with pytest.raises(EngineError, match="2 GPUs of one node, this machine has 8 and 1"):
        _check_room(nodes, wanted)
    _check_room(nodes, wanted.model_copy(update={"address": "auto"}))
    assert capsys.readouterr().err == (
        "warning: an actor wants 1 processors and 2 GPUs of one node, its nodes have 8 and 1, "
        "2 and 0: waiting for another\n"
    )
    _check_room(nodes, wanted.model_copy(update={"gpus_per_actor": 1}))
    assert capsys.readouterr().err == ""


def test_actors_that_would_share_a_gpu_unasked_are_refused():
    nodes = [node(True, CPU=8.0, GPU=2.0)]
    with pytest.raises(UsageError) as caught:
        _check_room(nodes, ScaleOptions(executor="ray", actors=2))
    assert str(caught.value) == (
        "scale.gpus_per_actor is 0: 2 actors would all take the same GPU\n"
        "hint: scale.gpus_per_actor = 1, or a share of one"
    )
    _check_room(nodes, ScaleOptions(executor="ray", actors=1))
    _check_room(nodes, ScaleOptions(executor="ray", actors=2, gpus_per_actor=0.5))
    _check_room([node(True, CPU=8.0)], ScaleOptions(executor="ray", actors=2))


class Rows:
    """Stands for a Ray data set; some of its answers lay on a node that went."""

    def __init__(self, passes):
        self.passes = iter(passes)

    def flat_map(self, *_, **__):
        return self

    def iter_rows(self):
        for key in next(self.passes):
            if key == "lost":
                raise ray.exceptions.ObjectLostError("ab" * 14, b"", "")
            yield actors._row(key=key, completion=DONE.model_dump_json())


def spread_over(passes, monkeypatch):
    rows = Rows(passes)
    monkeypatch.setattr(ray.data, "from_items", lambda *_, **__: rows)
    monkeypatch.setattr(actors, "_cluster", lambda _: nullcontext())
    turns = (Message(role="user", content="2 + 2"),)
    requests = [Request(key=key, messages=turns) for key in "abc"]
    return spread(lambda: Failing(None), requests, {"a", "b", "c"}, ScaleOptions(executor="ray"))


def test_answers_that_lay_on_a_lost_node_are_asked_again(monkeypatch):
    found = list(spread_over([["a", "lost"], ["b", "c"]], monkeypatch))
    assert [key for key, _ in found] == ["a", "b", "c"]


def test_a_cluster_that_loses_everything_is_not_asked_for_ever(monkeypatch):
    with pytest.raises(EngineError, match="1 requests were lost with their actors"):
        list(spread_over([["a", "b"], ["lost"]], monkeypatch))

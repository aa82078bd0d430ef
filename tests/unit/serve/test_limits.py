"""What an error tells, and which names are this machine's."""

import pytest

from serve.limits import LOOPBACK, _without_port, problem


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("sha256 of path:/home/me/x.gguf is 1", "sha256 of x.gguf is 1"),
        ("cannot open '/srv/a b': no", "cannot open 'a b': no"),
        ("cannot open '/srv/My Models/a b': no", "cannot open 'a b': no"),
        ("model /etc/x: no such file", "model x: no such file"),
        ("12.5 tokens/s and 3 km/h", "12.5 tokens/s and 3 km/h"),
        ("no model is called '../x'", "no model is called '../x'"),
    ],
)
def test_of_a_path_only_its_last_part_is_told(message, told):
    assert problem(503, message)["error"]["message"] == told


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("[::1]:80", True),
        ("::1", True),
        ("127.0.0.1.evil.example", False),
        ("localhost:80:evil", False),
        ("", False),
    ],
)
def test_which_names_are_this_machine_s(host, ours):
    assert (_without_port(host) in LOOPBACK) is ours

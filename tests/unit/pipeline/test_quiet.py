import os
import subprocess
import sys

from pipeline.quiet import QUIET, quieten

# What DeepSpeed does as it is loaded, then says where it finds no GPU.
SPEAKS = """
import logging, sys
from pipeline.quiet import quieten
quieten()
logger = logging.getLogger("DeepSpeed")
logger.setLevel(logging.WARNING)
logger.propagate = False
logger.addHandler(logging.StreamHandler(stream=sys.stdout))
logger.warning("Setting accelerator to CPU.")
logger.error("out of disk")
"""


def test_deepspeed_tells_its_errors_only():
    said = subprocess.run(
        [sys.executable, "-c", SPEAKS], capture_output=True, text=True, check=True
    )
    assert said.stdout == "out of disk\n"


def test_what_the_environment_says_holds(monkeypatch):
    monkeypatch.setattr(os, "environ", {"TQDM_DISABLE": "0"})
    quieten()
    assert os.environ == QUIET | {"TQDM_DISABLE": "0"}

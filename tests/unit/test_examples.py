"""The examples for Slurm and SkyPilot: they parse, and say the command that the README says."""

import re
import shlex
import subprocess
from pathlib import Path

import yaml

from pipeline.all import _parser
from pipeline.recipe_files import find_recipe, load_recipe

ROOT = Path(__file__).parent.parent.parent
SLURM, SKYPILOT = ROOT / "examples/slurm/retort.sbatch", ROOT / "examples/skypilot/retort.yaml"
COMMAND = "-m pipeline.all cluster"


def recipe_of(line: str):
    """The recipe that a command line asks for, with its --set wishes."""
    words = shlex.split(line.split("pipeline.all", 1)[1].rstrip("& "))
    options = _parser().parse_args(words)
    wishes = tuple(wish.replace("$head:$port", "10.0.0.1:6379") for wish in options.set)
    return load_recipe(find_recipe(options.recipe), wishes)


def test_the_slurm_script_is_a_shell_script_of_known_options():
    assert subprocess.run(["bash", "-n", SLURM]).returncode == 0
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", SLURM.read_text(), re.M))
    assert options["nodes"] == "2"
    assert options["gpus-per-node"] == "4"


def test_slurm_runs_the_readmes_command_over_its_ray_cluster():
    script = SLURM.read_text().replace("\\\n", " ")
    line = next(line for line in script.splitlines() if COMMAND in line)
    recipe = recipe_of(line)
    assert recipe.scale.address == "10.0.0.1:6379"
    started = [line for line in script.splitlines() if "ray start" in line]
    assert len(started) == 2
    assert all('--cpus-per-task="$SLURM_CPUS_PER_TASK"' in line for line in started)
    # Not below srun, which kills what it started where the run is to end by itself.
    assert line.startswith("python -m ")
    assert f'{line.rstrip("& ")} &\nrun=$!\ntrap \'kill -TERM "$run"' in script
    # Four actors of two GPUs on two machines of four; training stays on one of them.
    assert recipe.scale.actors * recipe.scale.gpus_per_actor == 8
    assert recipe.training.processes == 4
    # Attempts come from other GPUs of that machine.
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", SLURM.read_text(), re.M))
    assert max(recipe.training.sampler_gpus) < int(options["gpus-per-node"])


def test_the_skypilot_task_has_fields_that_skypilot_knows():
    task = yaml.safe_load(SKYPILOT.read_text())
    assert set(task) == {"name", "resources", "num_nodes", "workdir", "file_mounts", "setup", "run"}
    assert set(task["resources"]) == {"accelerators", "use_spot", "job_recovery", "disk_size"}
    assert set(task["file_mounts"]["/runs"]) == {"name", "store", "mode"}
    recipe = recipe_of(task["run"].strip())
    assert task["resources"]["accelerators"] == f"H100:{recipe.hardware.gpus}"


def test_the_readme_says_the_same_command():
    readme = (ROOT / "README.md").read_text()
    assert ".venv/bin/python " + COMMAND in readme
    assert all(path.relative_to(ROOT).as_posix() in readme for path in (SLURM, SKYPILOT))

"""Every target of the Makefile runs an existing command with the user's values."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY

from cifar_lab.arguments import make_parser

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
ODD = "photo (1).jpg & touch 'x' $(y) \"z\";"
TARGETS = {
    "experiment": (["SEEDS=3,5", "DATA=cifar100", "DEVICES=2"], {"seeds": (3, 5), "data": "cifar100", "devices": 2}),
    "pairs": (["EXPERIMENTS=linear", "CLUSTER=head:6379", "GPUS=0.5"], {"cluster": "head:6379", "gpus": 0.5}),
    "curve": (
        ["EXPERIMENTS=cnn", "KEY=model.widths", "VALUES=[32] [16,24,32]", "SEEDS=3", "FIGURE=x.svg"],
        {"key": "model.widths", "values": ["[32]", "[16,24,32]"], "seeds": (0, 1, 2), "figure": Path("x.svg")},
    ),
    "sweep": (
        ["EXPERIMENTS=cnn", "SPACE=optim.learning_rate=1..5:log data.translate=0..4"],
        {"overrides": ["optim.learning_rate=1..5:log", "data.translate=0..4"], "trials": 20, "seeds": (0,)},
    ),
    "reproduce": (
        ["RUN=abc", "TOLERANCE=0.01", "DATA_DIR=photos"],
        {"run": "abc", "tolerance": 0.01, "data_dir": Path("photos")},
    ),
    "compare": (
        ["METRIC=val/acc", "MARGIN=0.5", "PLAN=1"],
        {"experiments": ["linear", "cnn"], "metric": "val/acc", "margin": 0.5, "plan": True},
    ),
    "results": ([], {"experiments": [], "output": Path("results")}),
    "report": (["EXPERIMENTS=a b", "TRUST=1"], {"experiments": ["a", "b"], "trust": True}),
    "evaluate": (
        ["RUN=cnn", "DATA=my files", "CORRUPTIONS=fog snow", "OOD=cifar100"],
        {"run": "cnn", "data": "my files", "corruptions": ["fog", "snow"], "against": "cifar100"},
    ),
    "best": ([], {}),
    "predict": ([f"IMAGES={ODD.replace('$', '$$')}", "MODEL=models:/x@y"], {"images": [ODD], "model": "models:/x@y"}),
    "serve": (["PORT=99"], {"port": 99, "model": None}),
    "data": (["DATA_DIR=my photos/", "DATA_NAME=it's"], {"data_dir": Path("my photos"), "data_name": "it's"}),
    "check-gpu": ([], {}),
    "ui": ([], {"port": 5000}),
    "server": (["HOST=0.0.0.0"], {"host": "0.0.0.0", "port": 5000}),
    "relocate": ([], {}),
    "clean": (["YES=1"], {"yes": True}),
}


def make(*arguments, **environment):
    environment = {**os.environ, "CONDA_DEFAULT_ENV": "", "MAKEFLAGS": "", "MAKELEVEL": "0", **environment}
    return subprocess.run(["make", *arguments], cwd=REPOSITORY, env=environment, text=True, capture_output=True)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_its_command_with_what_was_given(target):
    given, expected = TARGETS[target]
    words = shlex.split(make("-n", target, "READY=", *given).stdout.replace("\\\n", ""))
    assert words[:3] == [".venv/bin/python", "-m", "cifar_lab"]
    options = vars(make_parser().parse_args(words[3:]))
    assert options["command"] == target
    assert expected.items() <= options.items()


@pytest.mark.parametrize("given", [{"arguments": ["SEEDS=3"]}, {"environment": {"SEEDS": "3"}}])
def test_a_sweep_has_several_seeds_only_if_they_are_asked_for(given):
    command = ["-n", "sweep", "READY=", "EXPERIMENTS=cnn", "SPACE=data.translate=0..4"]
    assert "--seeds '3'" in make(*command, *given.get("arguments", []), **given.get("environment", {})).stdout


def test_every_command_has_a_target_and_every_target_a_line_of_help():
    text = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split())
    assert targets == phony
    assert targets - TARGETS.keys() == {"help", "setup", "test", "bench", "lint", "conda", "audit", "lock"}
    listed = make().stdout
    assert all(re.search(rf"^{target} +\w", listed, re.MULTILINE) for target in targets)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("reproduce", "give RUN=<run id>"),
        ("curve", "give KEY="),
        ("curve KEY=data.translate", "give VALUES="),
        ("sweep", "give SPACE="),
        ("predict", "give IMAGES="),
    ],
)
def test_what_is_not_given_is_asked_for(target, message):
    done = make(*target.split(), "READY=")
    assert done.returncode == 2
    assert message in done.stderr


def test_an_environment_that_only_has_the_name_of_conda_s_is_not_used(tmp_path):
    assert make("-n", "best", "READY=", CONDA_DEFAULT_ENV="cifar-lab").stdout.startswith(".venv/bin/python ")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    command = make("-n", "best", CONDA_DEFAULT_ENV="cifar-lab", CONDA_PREFIX=str(tmp_path)).stdout
    assert command == f"{tmp_path}/bin/python -m cifar_lab best\n"

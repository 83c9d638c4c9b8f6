"""Mistakes on the command line take one line, exit code 2 and no waiting; wrong images one line and exit code 1."""

import re
import resource
import subprocess
import sys

import pytest
from conftest import EXPERIMENTS

from cifar_lab.__main__ import main

LINEAR = str(EXPERIMENTS / "linear.toml")


@pytest.fixture
def cifar_lab(capsys):
    """A function that runs a command in this process; returns its exit code and its stderr."""

    def run(*arguments):
        try:
            code = main(list(arguments))
        except SystemExit as end:  # of argparse
            code = end.code
        return code, capsys.readouterr().err

    return run


def heavy_imports(*arguments):
    """The slow libraries that a command imports."""
    program = (
        "import sys\nfrom cifar_lab.__main__ import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(*[name for name in ('torch', 'mlflow', 'pytorch_lightning', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1]


MISTAKES = [
    ((), "the following arguments are required: command"),
    (("experiments",), "invalid choice: 'experiments'"),
    (("experiment",), "the following arguments are required: experiment"),
    (("experiment", "lineer"), "no experiment 'lineer'; experiments/ has: none"),
    (("experiment", LINEAR, "--seeds", "0"), "--seeds: '0' is neither a count from 1 to 10,000 nor different seeds"),
    (("experiment", LINEAR, "--seeds", "3,3"), "--seeds: '3,3' is neither"),
    (("experiment", LINEAR, "--seeds", "1,x"), "--seeds: '1,x' is neither"),
    (("experiment", LINEAR, "--seeds", "1000000000"), "'1000000000' is neither a count from 1 to 10,000"),
    (("experiment", LINEAR, "--seeds", "1,9999999999999999999"), "is neither a count"),
    (
        ("experiment", LINEAR, "--jobs", "9" * 5000),
        f"--jobs: '{'9' * 40}' is not a positive whole number up to 1,000,000",
    ),
    *(
        (("experiment", LINEAR, "--gpus", text), f"--gpus: '{text}' is neither")
        for text in ("abc", "-1", "1.5", "inf", "nan")
    ),
    (("experiment", LINEAR, "--gpus=-3"), "--gpus: '-3' is neither"),
    (("experiment", LINEAR, "--set", "trainer.epochs=1000000000000"), "Input should be less than or equal to 100000"),
    (("experiment", LINEAR, "--set", "trainer.devices=1000000000"), "Input should be less than or equal to 1024"),
    (("experiment", "a\x1b[31mb"), r"an experiment can't have the name 'a\\x1b[31mb'"),
    (("experiment", LINEAR, "--epochs", "0"), "--epochs: '0' is not a positive whole number"),
    (("experiment", LINEAR, "--epochs", "2.5"), "--epochs: '2.5' is not a positive whole number"),
    (("experiment", LINEAR, "--jobs", "many"), "--jobs: 'many' is not a positive whole number"),
    (
        ("experiment", LINEAR, "--set", "optim.lr=1"),
        "unknown key optim.lr; known here: kind, learning_rate",
    ),
    (("experiment", LINEAR, "--set", "optim.learning_rate=high"), "optim.learning_rate = 'high': Input should be"),
    (("experiment", LINEAR, "--seed", "5"), "unrecognized arguments: --seed 5"),
    (("experiment", LINEAR, LINEAR), "an experiment is named twice: linear, linear"),
    (("ui", "--port", "70000"), "--port: '70000' is not a port: 1 to 65535"),
    (("experiment", LINEAR, "--accelerator", "tpu"), "argument --accelerator: invalid choice: 'tpu'"),
    (("reproduce",), "the following arguments are required: run"),
    (("reproduce", "abc", "--tolerance", "-1"), "--tolerance: '-1' is not a non-negative number"),
    (("compare", "linear", "--figure", "x.doc"), "--figure: 'x.doc' does not end in .png, .svg, .pdf"),
    (("compare", "linear", "--metric", "test/acc,val/acc"), "argument --metric: invalid choice: 'test/acc,val/acc'"),
    (("best", "--metric", "test/acc"), "unrecognized arguments: --metric test/acc"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_cost_one_line_and_exit_code_2(workplace, cifar_lab, arguments, message):
    code, error = cifar_lab(*arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not any(workplace.iterdir())


def test_the_command_itself_ends_with_the_line_and_the_code(workplace):
    command = [sys.executable, "-m", "cifar_lab", "experiment", "lineer"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "cifar_lab: no experiment 'lineer'; experiments/ has: none\n"


@pytest.mark.parametrize("arguments", [("experiment", "--help"), MISTAKES[10][0]])
def test_help_and_mistakes_do_not_wait_for_heavy_imports(workplace, arguments):
    assert heavy_imports(*arguments) == ""


def test_images_that_are_not_there_cost_one_line_and_exit_code_1(workplace, cifar_lab, tmp_path):
    line = f"cifar_lab: data directory {tmp_path}/nowhere does not exist\n"
    assert cifar_lab("experiment", LINEAR, "--data-dir", str(tmp_path / "nowhere")) == (1, line)
    assert not any(workplace.iterdir())


def test_the_environment_names_the_images_too(workplace, cifar_lab, monkeypatch):
    monkeypatch.setenv("CIFAR_LAB_DATA", "elsewhere")
    assert cifar_lab("experiment", LINEAR) == (1, "cifar_lab: data directory elsewhere does not exist\n")


def test_a_full_disk_costs_one_line_and_leaves_no_half_cache(workplace, cifar_lab):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # like a full disk, it makes a write fail halfway
    try:
        code, error = cifar_lab("experiment", LINEAR, "--data", "digits")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert re.fullmatch(r"cifar_lab: cannot write data/cache/\w+: .* is the disk full\?\n", error)
    assert [path.name for path in workplace.rglob("*") if path.is_file()] == [".lock"]


def test_ui_without_runs_says_what_to_do_first(workplace, cifar_lab):
    assert cifar_lab("ui") == (1, "cifar_lab: no mlflow.db here; run make experiment first\n")

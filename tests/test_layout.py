"""The order of imports between modules, and the agreement of what says which versions are installed."""

import ast
import re
import tomllib
from itertools import chain

import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement

ORDER = [
    "processes",
    "config",
    "space",
    "machine",
    "catalogue",
    "sources",
    "official",
    "imagefiles",
    "search",
    "datasets",
    "datamodule",
    "optim",
    "coupling",
    "classifier",
    "models",
    "ranks",
    "train",
    "comparison",
    "calibration",
    "figures",
    "heatmaps",
    "store",
    "provenance",
    "ui",
    "server",
    "runs",
    "registered",
    "artifacts",
    "tracking",
    "results",
    "trained",
    "champion",
    "worker",
    "pool",
    "cluster",
    "progress",
    "trial",
    "repeat",
    "sweep",
    "experiment",
    "reproduce",
    "check_gpu",
    "sets",
    "compare",
    "report",
    "pairs",
    "predict",
    "serve",
    "data",
    "best",
    "arguments",
    "__main__",
]


def imported(module):
    """The names of the package's modules that a module imports, functions' own imports included."""
    names = set()
    for node in ast.walk(ast.parse((REPOSITORY / "cifar_lab" / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cifar_lab":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cifar_lab."):
            names.add(node.module.removeprefix("cifar_lab."))
    return names


def test_imports_point_to_the_left():
    modules = {path.stem for path in (REPOSITORY / "cifar_lab").glob("*.py")} - {"__init__"}
    assert modules == set(ORDER)
    wrong = [(m, other) for m in ORDER for other in imported(m) if ORDER.index(other) >= ORDER.index(m)]
    assert not wrong


def test_few_modules_write_to_mlflow():
    writes = re.compile(r"(client|mlflow\w*)\.(log|create|set|update|delete)_")
    writers = {m for m in ORDER if writes.search((REPOSITORY / "cifar_lab" / f"{m}.py").read_text())}
    assert writers == {"store", "ui", "artifacts", "tracking", "results", "champion"}


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked():
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    return {normalised(r.name): r for r in map(Requirement, filter(None, lines))}


def test_lock_pins_every_requirement_within_its_range():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins = locked()
    extras = project["optional-dependencies"]
    assert "ray" not in pins  # of the extra `cluster`, which not everyone installs
    for requirement in map(Requirement, chain(project["dependencies"], extras["dev"], extras["server"])):
        (pin,) = pins[normalised(requirement.name)].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def test_lock_names_no_address_and_both_linux_and_macos_get_torch():
    text = (REPOSITORY / "requirements.lock").read_text()
    assert "://" not in text
    assert "index-url" not in text
    for platform in ("linux", "darwin"):
        marker = locked()["torch"].marker
        assert marker is None or marker.evaluate({"sys_platform": platform})


def test_environment_yml_installs_the_lock_and_this_package_on_a_python_that_fits():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    python, pip, with_pip = environment["dependencies"]
    assert environment["name"] == project["name"] == "cifar-lab"
    assert Requirement(f"python{project['requires-python']}").specifier.contains(python.removeprefix("python="))
    assert pip == "pip"
    assert with_pip["pip"] == ["--requirement requirements.lock", "--editable ."]

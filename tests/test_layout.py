"""The folders of the package and their order, and the agreement of the files that name versions."""

import ast
import re
import tomllib
from itertools import chain

import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement

PACKAGE = REPOSITORY / "cifar_lab"
# A folder or file may import those before it. `networks` and `training` import each other: build.py makes a Classifier.
ORDER = [
    "errors",
    "processes",
    "terminal",
    "files",
    "experiment_files",
    "network_files",
    "sections",
    "config",
    "data",
    "training",
    "analysis",
    "tracking",
    "execution",
    "commands",
    "arguments",
    "api",
    "__main__",
]
LEVEL = {room: level for level, room in enumerate(ORDER)} | {"networks": ORDER.index("training")}


def modules():
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path):
    """What a module imports from the package, including imports in functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cifar_lab":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return rooms


def test_imports_point_downwards():
    assert {room_of(path) for path in modules()} == LEVEL.keys()
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {room}"
        for path in modules()
        for room in imported_rooms(path)
        if LEVEL[room] > LEVEL[room_of(path)]
    ]
    assert not wrong


def test_only_tracking_writes_to_mlflow():
    writes = re.compile(r"(client|mlflow\w*)\.(log|create|set|update|delete)_")
    assert {room_of(path) for path in modules() if writes.search(path.read_text())} == {"tracking"}


def test_training_and_analysis_know_no_mlflow():
    for room in "data", "networks", "training", "analysis":
        assert not [path for path in (PACKAGE / room).glob("*.py") if "mlflow" in path.read_text()]


def test_every_file_can_be_read_in_one_go():
    long = {str(path.relative_to(PACKAGE)): n for path in modules() if (n := len(path.read_text().splitlines())) > 250}
    assert not long


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked():
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    return {normalised(r.name): r for r in map(Requirement, filter(None, lines))}


def test_lock_pins_every_requirement_within_its_range():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins = locked()
    extras = project["optional-dependencies"]
    assert "ray" not in pins  # it is in the extra `cluster`, which is optional
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


def test_readme_and_experiment_files_tell_the_same_results():
    readme = (REPOSITORY / "README.md").read_text()
    for file in (REPOSITORY / "experiments").glob("*.toml"):
        header = file.read_text().partition("\n[")[0]
        results = re.findall(r"\d+\.\d+ ± \d+\.\d+ %", header)
        assert results, file.name
        for result in results:
            assert result in readme, file.name

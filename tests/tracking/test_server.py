"""The tracking server for a team, started by the commands of docs/server.md on a temporary PostgreSQL."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, Driver, experiment_arguments, free_port, recorded
from mlflow.tracking import MlflowClient

POSTGRESQL = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (POSTGRESQL and shutil.which("pgloader")), reason="Debian's postgresql and pgloader"),
]
ROOT = os.geteuid() == 0
PREFIX = "runuser -u postgres -- " if ROOT else ""  # PostgreSQL does not run as root
ADA = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "at-least-12-characters"}


def commands(heading):
    """The indented lines below a heading of the document, without the installation of packages."""
    text = (REPOSITORY / "docs" / "server.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    return "\n".join(line for line in lines if "apt-get" not in line)


@pytest.fixture(scope="module")
def postgresql():
    """Environment for psql and createdb to reach an empty PostgreSQL, which asks for passwords over TCP."""
    folder, port = Path(tempfile.mkdtemp()), free_port()  # not below pytest's folders, which only their owner enters
    if ROOT:
        shutil.chown(folder, "postgres")
    control = f"{PREFIX}{POSTGRESQL}/pg_ctl --pgdata {folder}/data --wait --log {folder}/log"
    subprocess.run(
        f"{PREFIX}{POSTGRESQL}/initdb --pgdata {folder}/data --username postgres --auth-host scram-sha-256 && "
        f"{control} --options '-p {port} -k {folder}' start",
        shell=True,
        check=True,
        capture_output=True,
        cwd=folder,
    )
    yield {**os.environ, "PGHOST": str(folder), "PGPORT": str(port), "PGUSER": "postgres"}
    subprocess.run(f"{control} --mode immediate stop", shell=True, check=True, capture_output=True, cwd=folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(postgresql, tracked, tmp_path_factory):
    """Address of a server to which the runs of `tracked` were moved."""
    folder, port, bin = tmp_path_factory.mktemp("server"), free_port(), Path(sys.executable).parent
    address = f"http://127.0.0.1:{port}"
    setup, serve, users = commands("On Debian").partition("make server HOST=0.0.0.0\n")
    move = commands("Moving in with an `mlflow.db`")
    make = f"exec make --file {REPOSITORY}/Makefile BIN= READY= PORT={port} {serve.removeprefix('make ')}"
    script = f"set -e\n{setup}\nunset PGHOST PGUSER\n{move}\n{make}"
    for text, here in {
        "sudo -u postgres ": PREFIX,
        "@localhost/": f"@localhost:{postgresql['PGPORT']}/",
        "/home/ada/cifar-lab": str(tracked.folder),
        ".venv/bin/": f"{bin}/",
    }.items():
        assert text in script
        script = script.replace(text, here)
    with open(folder / "log", "w") as log:
        environment = {**postgresql, "MLFLOW_WORKERS": "2", "PATH": f"{bin}:{os.environ['PATH']}"}
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + 300
    while subprocess.run(["curl", "-sf", f"{address}/health"], capture_output=True).returncode:
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)
    add_ada = users[: users.index("export")].replace("http://<host>:5000", address)
    subprocess.run(add_ada, shell=True, check=True, capture_output=True)
    yield address
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def test_runs_that_moved_in_are_complete_and_more_are_added_by_another_user(server, tracked, unused, monkeypatch):
    before = recorded(tracked.client)
    for name, value in ADA.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(server)
    assert recorded(client) == before
    seeds = ("--seeds", "3", "--epochs", "2")
    (unused / "mlflow.db").unlink()
    driver = Driver(unused, *experiment_arguments(*seeds), MLFLOW_TRACKING_URI=server, **ADA)
    assert driver.wait() == 0, driver.output()
    assert "linear: 1 of 3 runs to train" in driver.output()
    assert not (unused / "mlflow.db").exists()
    after = recorded(client)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before == {"linear-seed2", "cnn-seed2"}
    assert [after[name][0] for name in after] == ["FINISHED"] * 6
    experiment = client.get_experiment_by_name("digits")
    parents = client.search_runs([experiment.experiment_id], "tags.kind = 'repeats'")
    assert [parent.data.metrics["n"] for parent in parents] == [3, 3]
    champion = client.get_model_version_by_alias("digits", "champion")
    (best,) = client.search_runs([experiment.experiment_id], "tags.best = 'true'")
    assert champion.run_id == best.info.run_id


def test_a_refused_login_costs_one_line(server, unused):
    driver = Driver(unused, *experiment_arguments("--seeds", "1"), MLFLOW_TRACKING_URI=server)
    assert driver.wait() == 1
    said = f"cifar_lab: cannot open the runs: {server} refused the login; set MLFLOW_TRACKING_USERNAME and"
    assert driver.output().splitlines()[-1].startswith(said)


MISTAKES = [
    ("", "set MLFLOW_BACKEND_STORE_URI=postgresql://<user>:<password>@<host>/<database>; docs/server.md makes one"),
    ("postgresql://cifar_lab:wrong@localhost:{port}/cifar_lab", "password authentication failed"),
    ("postgresql://cifar_lab:choose-one@localhost:{port}/other", "does not exist"),
    ("postgresql://cifar_lab:choose-one@localhost:1/cifar_lab", "Connection refused"),
    ("postgresql://cifar_lab:choose-one@localhost:port/cifar_lab", "invalid literal"),
]


@pytest.mark.parametrize(("database", "line"), MISTAKES)
def test_errors_of_the_database_cost_one_line(server, postgresql, unused, database, line):
    uri = database.format(port=postgresql["PGPORT"])
    driver = Driver(unused, "server", "--port", str(free_port()), MLFLOW_BACKEND_STORE_URI=uri)
    assert driver.wait() == 1
    (printed,) = driver.output().splitlines()
    assert line in printed
    assert "choose-one" not in printed

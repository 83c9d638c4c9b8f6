import contextlib
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from dataclasses import dataclass, replace
from multiprocessing import forkserver

import numpy as np
import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient
from PIL import Image

from cifar_lab.__main__ import main
from cifar_lab.data import search
from cifar_lab.data.catalogue import CIFAR10, ENTRIES
from cifar_lab.processes import PRELOAD

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
EXPERIMENTS = pathlib.Path(__file__).resolve().parent / "experiments"  # small: for digits

EPOCH_METRICS = ("train/loss", "train/cross_entropy", "train/acc", "val/loss", "val/acc", "lr", "epoch_seconds")
TEST_METRICS = ("test/loss", "test/acc")
NETWORK = """
from pydantic import Field
from torch import nn
from cifar_lab.config import ModelConfig


class Config(ModelConfig):
    share: float = Field(0.1, ge=0, lt=1, description="of the pixels that are dropped")


class Network(nn.Module):
    def __init__(self, config, outputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(config.share), nn.Linear(192, 32), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Linear(32, outputs),
        )

    def forward(self, images):
        return self.layers(images)
"""
NETWORK_EXPERIMENT = '[model]\nkind = "mine"\n[optim]\nlearning_rate = 0.02\n[trainer]\nepochs = 6\nbatch_size = 100\n'


def write_images(folder, per_class=(12, 4), suffix="png", classes=CIFAR10.classes):
    """A learnable data set of image files: each class is a grey level plus noise."""
    noise, step = np.random.default_rng(0), 250 // len(classes)
    for split, count in zip(("train", "test"), per_class, strict=True):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(step * label + noise.integers(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index:04}.{suffix}")
    return folder


@pytest.fixture
def image_folder(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def gpu(monkeypatch):
    """A simulated GPU, with the evaluation batches of the CPU, on which the last digits of a loss depend."""
    import torch
    from make_believe import GPU, install, install_for_lightning

    from cifar_lab.training import batches, hardware

    monkeypatch.setattr(batches, "GPU_EVALUATION_BATCH", batches.EVALUATION_BATCH)
    monkeypatch.setattr(hardware.collect_env, "get_nvidia_driver_version", lambda run: None)
    install(monkeypatch.setattr)
    install_for_lightning(monkeypatch.setattr)
    with GPU():
        yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.fixture(autouse=True, scope="module")
def _own_runs():
    """Remove, after the tests of a file, what MLflow set in the environment of this process."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id):
    """A folder that all processes of this test session share."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def empty_database(shared):
    """An `mlflow.db` without runs, to copy: MLflow takes seconds to create one."""
    with FileLock(shared / "database.lock"), contextlib.chdir(shared):
        MlflowClient("sqlite:///mlflow.db").search_experiments()
    return shared / "mlflow.db"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty current folder: no data, no runs, no settings in the environment, no caches at home, no network."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in "CIFAR_LAB_DATA", "MLFLOW_TRACKING_URI", "KERAS_HOME", "HF_HOME", "HF_HUB_CACHE":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(search, "HOME", tmp_path / "home")
    for name, entry in ENTRIES.items():
        monkeypatch.setitem(ENTRIES, name, replace(entry, sources=("http://127.0.0.1:1/",)))
    return folder


@dataclass
class Tracked:
    """A folder in which `cifar_lab experiment` ran."""

    folder: pathlib.Path
    output: str
    client: MlflowClient
    experiment_id: str

    def runs(self, condition=""):
        return self.client.search_runs([self.experiment_id], condition, order_by=["attributes.start_time ASC"])

    def artifacts(self, run, path=None):
        found = self.client.list_artifacts(run.info.run_id, path)
        return sorted(name for a in found for name in (self.artifacts(run, a.path) if a.is_dir else [a.path]))


def start_experiment(folder, *arguments, wait=True):
    command = [sys.executable, "-m", "cifar_lab", *experiment_arguments(*arguments)]
    environment = {k: v for k, v in os.environ.items() if k not in ("CIFAR_LAB_DATA", "MLFLOW_TRACKING_URI")}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    return (process, process.communicate()[0]) if wait else process


WARM = multiprocessing.get_context("forkserver")


def pytest_sessionstart(session):
    """Let the fork server import everything while the tests are collected."""
    if getattr(session.config.option, "numprocesses", None):
        return  # the tests run in processes of their own
    WARM.set_forkserver_preload([*PRELOAD, "cifar_lab.commands.reproduce", "mlflow.pytorch", "torch.export._trace"])
    forkserver.ensure_running()


LONGEST = (
    "test_resume",
    "test_gpu",
    "test_crash",
    "test_captured",  # of the first four, which start at once, only one waits for `tracked`
    "test_cluster",
    "test_distributed",
    "test_own_network",
    "test_sweep",
    "test_experiment",
    "test_server",
)


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


class Driver:
    """`cifar_lab` in a process forked after its imports, with its output in a file."""

    def __init__(self, folder, *arguments, **environment):
        self.log = folder / f"output-{uuid.uuid4()}.txt"
        address = forkserver._forkserver._forkserver_address
        self.process = WARM.Process(target=_drive, args=(address, folder, self.log, arguments, environment))
        self.process.start()

    def output(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, text=None, seconds=120):
        """Wait for `text` in the output, or for the end; returns the exit code."""
        deadline = time.monotonic() + seconds
        while self.process.is_alive() and not (text and text in self.output()):
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)
        return self.process.exitcode


def _drive(address, folder, log, arguments, environment):
    os.chdir(folder)
    for name in ("CIFAR_LAB_DATA", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    forkserver._forkserver._forkserver_address = address  # workers come from the same server
    forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None
    sys.exit(main(list(arguments)))


def place(folder):
    """Put a network of one's own, `mine`, and its experiment into a folder."""
    for name, file, text in (("networks", "mine.py", NETWORK), ("experiments", "mine.toml", NETWORK_EXPERIMENT)):
        (folder / name).mkdir()
        (folder / name / file).write_text(text)
    return folder


def experiment_arguments(*arguments):
    experiments = [str(EXPERIMENTS / f"{name}.toml") for name in ("linear", "cnn")]
    return ["experiment", *experiments, "--data", "digits", *arguments]


def recorded(client):
    """By name of the run: status, weights, metric points without times, number of heatmaps."""
    experiment = client.get_experiment_by_name("digits")
    found = {}
    for run in client.search_runs([experiment.experiment_id], "tags.kind = 'run'"):
        assert run.info.run_name not in found
        points = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in EPOCH_METRICS + TEST_METRICS
        }
        points["epoch_seconds"] = [step for step, _ in points["epoch_seconds"]]
        images = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
        found[run.info.run_name] = (run.info.status, run.data.tags["weights_digest"], points, len(images))
    return found


def statuses_of(client):
    """The statuses of the runs on digits."""
    experiment = client.get_experiment_by_name("digits")
    found = client.search_runs([experiment.experiment_id], "tags.kind = 'run'") if experiment else []
    return [run.info.status for run in found]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def empty_server(tmp_path_factory, empty_database):
    """Address of an empty tracking server."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    shutil.copy(empty_database, folder)
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    deadline, up = time.monotonic() + 120, False
    while not up:
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.5)
        with contextlib.suppress(OSError):
            up = urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


def processes_in(folder):
    """Ids of the processes whose current directory is `folder` (Linux; nothing elsewhere)."""
    found = []
    for link in pathlib.Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            found += [int(link.parent.name)] if link.readlink() == folder else []
    return found


@pytest.fixture
def unused(tracked, empty_database, tmp_path):
    """A folder without runs in which digits are already decoded."""
    shutil.copytree(tracked.folder / "data", tmp_path / "data")
    shutil.copy(empty_database, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tracked(shared, tmp_path_factory):
    """Both models for 2 epochs on digits: first with seed 0, then with seeds 0 and 1. A copy for each process."""
    first, folder = shared / "tracked", tmp_path_factory.mktemp("tracked") / "copy"
    with FileLock(shared / "tracked.lock"):
        if not (shared / "output.txt").exists():
            first.mkdir()
            process, output = start_experiment(first, "--seeds", "1", "--epochs", "2")
            assert process.returncode == 0, output
            driver = Driver(first, *experiment_arguments("--seeds", "2", "--epochs", "2"))
            assert driver.wait() == 0, driver.output()
            (shared / "output.txt").write_text(driver.output())
    shutil.copytree(first, folder)
    with contextlib.chdir(folder):
        assert main(["relocate"]) == 0
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment_id = client.get_experiment_by_name("digits").experiment_id
    return Tracked(folder, (shared / "output.txt").read_text(), client, experiment_id)

"""Runs on simulated GPUs (see make_believe): one, several, and one without a driver."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import EXPERIMENTS, REPOSITORY, WARM, experiment_arguments, recorded
from make_believe import GPUTensor, install
from mlflow.tracking import MlflowClient
from PIL import Image
from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_only
from test_train import Stop, config_of, figures

from cifar_lab.__main__ import main
from cifar_lab.commands import check_gpu
from cifar_lab.data.cache import load_dataset
from cifar_lab.errors import UserError
from cifar_lab.execution.local import Pool
from cifar_lab.tracking import recovery
from cifar_lab.tracking.provenance import machine_tags
from cifar_lab.training import distributed, hardware
from cifar_lab.training.augmentation import resize
from cifar_lab.training.train import train

MODELS = {
    "linear": [],
    "cnn": ["data.sides=[32]"],
    "cnn with test-time augmentation, nothing held out": ["data.sides=[32]", "trainer.tta=true", "data.val_size=0"],
    "linear one-vs-one": ["model.one_vs_one=true"],
    "cnn one-vs-one": ["data.sides=[32]", "model.one_vs_one=true"],
}
SITE = REPOSITORY / "tests" / "site"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")


@pytest.fixture
def digits(workplace):
    return load_dataset("digits")[0]


def two_epochs(name, digits):
    return config_of(name.partition(" ")[0], digits, "trainer.epochs=2", "trainer.precision=fp32", *MODELS[name])


def test_the_make_believe_gpu_refuses_and_waits_as_a_real_one(gpu):
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert isinstance(there, GPUTensor)
    with pytest.raises(RuntimeError, match="on the same device"):
        there + here
    with pytest.raises(TypeError, match="can't convert cuda"):
        there.numpy()
    torch.cuda.set_sync_debug_mode("error")
    numbers = torch.arange(3, device="cuda") * 2 + 1
    for waiting in (numbers.sum().item, numbers.cpu, lambda: torch.bincount(numbers), lambda: here.to("cuda:0")):
        with pytest.raises(RuntimeError, match="synchronizing"):
            waiting()
    torch.cuda.set_sync_debug_mode("default")
    assert numbers.cpu().tolist() == [1, 3, 5]
    draws = [torch.rand(3, generator=torch.Generator(device).manual_seed(0)) for device in ("cpu", "cuda")]
    assert not draws[0].equal(draws[1])


class NoWaits(Callback):
    """Fails if anything between the first and last batch of an epoch waits for the GPU."""

    def on_train_batch_start(self, *_):
        torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if index + 1 == trainer.num_training_batches:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", MODELS)
def test_a_run_ends_with_the_bits_of_the_cpu_and_no_step_waits(digits, tmp_path, gpu, name):
    config = two_epochs(name, digits)
    here = train(config, 0, digits, tmp_path / "here", "cpu")
    there = train(config, 0, digits, tmp_path / "there", "cuda", callbacks=[NoWaits()])
    assert isinstance(there.model.confusion["test"], GPUTensor)
    assert figures(there) == figures(here)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize("name", ["linear", "cnn"])
def test_a_run_in_pieces_on_two_devices_is_the_run_in_one_go(digits, tmp_path, gpu, name):
    config = two_epochs(name, digits)
    whole = train(config, 0, digits, tmp_path / "whole", "cuda")
    with pytest.raises(SystemExit):
        train(config, 0, digits, tmp_path / "pieces", "cuda", callbacks=[Stop(13)])
    shutil.copy(tmp_path / "pieces", tmp_path / "other")
    for accelerator, checkpoint in (("cuda", "pieces"), ("cpu", "other")):
        assert figures(train(config, 0, digits, tmp_path / checkpoint, accelerator)) == figures(whole)


def test_small_images_are_those_of_the_cpu_to_one_grey_level(digits, gpu):
    images = torch.from_numpy(digits.images["train"][:100])
    here, there = resize(images, 20), resize(images.to("cuda:0"), 20).cpu()
    assert here.shape == there.shape == (100, 20, 20, 3)
    assert (here.int() - there.int()).abs().max() <= 1


def test_fp32_is_exact_and_short_memory_costs_one_line(digits, tmp_path, gpu):
    class Full(Callback):
        def on_train_batch_start(self, *_):
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...\n and so on")

    torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(UserError, match=r"^not enough memory \(CUDA out of memory Tried .* fewer --jobs or [^\n]*$"):
        train(two_epochs("linear", digits), 0, digits, tmp_path / "run", "cuda", callbacks=[Full()])


def test_what_a_run_on_a_gpu_depends_on_is_tagged_and_compared(gpu, monkeypatch):
    monkeypatch.setattr(hardware.collect_env, "get_nvidia_driver_version", lambda run: "580.95.05")
    tags = machine_tags("cuda")
    assert (tags["accelerator"], tags["device"], tags["driver"]) == ("cuda", "Make-believe GPU", "580.95.05")
    assert (tags["tf32"], tags["cudnn"]) == ("off", str(torch.backends.cudnn.version()))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert machine_tags("cuda")["tf32"] == "on"
    run = type("Run", (), {"data": type("Data", (), {"tags": tags})})
    changed = {**tags, "driver": "590.1", "cudnn": "1", "tf32": "on"}
    assert recovery.changed_environment(run, tags) == []
    assert recovery.changed_environment(run, changed) == ["driver", "cuDNN", "TF32"]
    assert "tf32" not in machine_tags("cpu")


def test_on_the_cpu_nothing_touches_a_gpu(digits, tmp_path, monkeypatch):
    def touch(*_):
        raise AssertionError("a GPU was asked for")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_lazy_init", touch)
    train(config_of("linear", digits, "trainer.epochs=1"), 0, digits, tmp_path / "run", "cpu")


def test_the_fork_server_asks_for_no_gpu():
    code = """
import torch
def touch(*_):
    raise SystemExit("a GPU was asked for")
for name in "_lazy_init", "init", "is_available", "device_count":
    setattr(torch.cuda, name, touch)
torch._C._cuda_getDeviceCount = touch
from cifar_lab.processes import PRELOAD
import cifar_lab.training.train
for name in PRELOAD:
    __import__(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def own_gpus():
    time.sleep(1)  # so that every worker takes one call
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize(
    ("visible", "jobs", "devices", "expected"),
    [
        (None, None, 1, ["0", "1", "2"]),
        ("4,7,5", None, 1, ["4", "5", "7"]),
        (None, 4, 1, ["0", "0", "1", "2"]),
        (None, None, 2, ["0,1"]),
        ("GPU-a,GPU-b,GPU-c", 1, 3, ["GPU-a,GPU-b,GPU-c"]),
    ],
)
def test_each_worker_has_gpus_of_its_own(monkeypatch, visible, jobs, devices, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    install(monkeypatch.setattr, count=3)
    pool = Pool("auto", jobs)
    assert pool.accelerator == "cuda"
    with pool.open(devices, 1, 8) as submit:
        assert sorted(call.result() for call in [submit(own_gpus) for _ in expected]) == expected


def test_one_gpu_is_seen_by_its_worker(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install(monkeypatch.setattr, count=1)
    with Pool("gpu", None).open(1, 1, 8) as submit:
        assert submit(own_gpus).result() == "0"


def test_a_run_is_not_taken_for_a_part_of_a_slurm_job(digits, tmp_path, monkeypatch):
    config = config_of("linear", digits, "trainer.epochs=1")
    alone = train(config, 0, digits, tmp_path / "alone", "cpu")
    for name, value in {"NTASKS": "4", "PROCID": "2", "LOCALID": "2", "NODELIST": "n[1-2]", "JOB_NAME": "job"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(rank_zero_only, "rank", 2)  # as Lightning takes it from the environment
    assert figures(train(config, 0, digits, tmp_path / "job", "cpu")) == figures(alone)


def wait_for_the_dead(log, *body):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    distributed.NOTICE_SECONDS = 0.5
    with distributed.ranks(2, "cpu", *body):
        time.sleep(300)  # as in a call of NCCL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"), [((os._exit,), "one of its processes died"), ((divmod, 0), "ZeroDivisionError")]
)
def test_a_rank_that_waits_for_a_dead_one_is_killed(tmp_path, body, message):
    process = WARM.Process(target=wait_for_the_dead, args=(tmp_path / "log", *body))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    assert message in (tmp_path / "log").read_text()


@pytest.fixture
def short_check(gpu, workplace, monkeypatch):
    """Make check-gpu small enough for a CPU."""
    shutil.copytree(EXPERIMENTS, workplace / "experiments")
    monkeypatch.setenv("PYTHONPATH", str(SITE))  # of the process that is killed
    monkeypatch.setenv("GPUS", "1")
    small = {"WIDTHS": (8, 8, 8), "TRAIN_SIZE": 250, "EPOCHS": 3, "SEEDS": 2}
    small |= {"IMAGES": 600, "MATRIX": 64, "TIMED": ("cnn",)}  # of the measurements of speed
    for name, value in small.items():
        monkeypatch.setattr(check_gpu, name, value)


@pytest.mark.slow
def test_check_gpu_reports_passed_checks(short_check, capsys):
    assert main(["check-gpu"]) == 0
    header, _, *rows, last = capsys.readouterr().out.splitlines()
    assert header == "| check | passed | result |"
    assert last == "0 of 13 checks failed"
    table = {what: (holds, seen) for what, holds, seen in (row.strip("| ").split(" | ") for row in rows)}
    assert {holds for holds, _ in table.values()} == {"yes"}
    assert "device Make-believe GPU, tf32 off" in table["GPU found"][1]
    first = table["cnn: loss and gradients of the first step as on the CPU"][1]
    assert first == "largest difference of gradients 0.0e+00, relative to the largest in the tensor"
    digest = table["cnn, fp32: same weights if killed and continued"][1]
    assert "of 3 epochs" in digest
    assert "difference +0.00 to +0.00 points" in table["cnn: test accuracy over 2 seeds as on the CPU"][1]
    assert table["cnn, fp32, captured: same weights in two runs"][1].endswith(", as without trainer.captured")
    for speed in "cnn, fp32: speed", "cnn, fp32, captured: speed":
        assert ", 0 waits for the GPU per step, " in table[speed][1]


@pytest.mark.slow
def test_check_gpu_reports_failed_checks(short_check, capsys, monkeypatch):
    monkeypatch.setattr(check_gpu, "MARGIN", -1.0)
    monkeypatch.setattr(check_gpu._GPU, "checks", lambda self: [("accuracy", lambda: self.equivalent("linear"))])
    assert main(["check-gpu"]) == 1
    captured = capsys.readouterr()
    assert "| accuracy | NO | AssertionError: " in captured.out
    assert captured.out.endswith("1 of 1 checks failed\n")


def test_check_gpu_without_one_says_so(capsys, workplace):
    assert main(["check-gpu"]) == 2
    assert capsys.readouterr().err == "cifar_lab: torch finds no GPU here, so there is nothing to check\n"


ASK = """
import sys, mlflow, numpy, uvicorn
from cifar_lab.__main__ import main
uvicorn.run = lambda app, **options: None
for command in {commands}:
    print("exit code", main(command), flush=True)
if {load}:  # as a user of MLflow alone does
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    print(mlflow.pyfunc.load_model("models:/digits@champion").predict(numpy.zeros((3, 32, 32, 3), numpy.uint8)).shape)
"""


def run(folder, gpus, *commands, load=False):
    """Output and errors of a process that runs commands on a machine with `gpus` simulated GPUs."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CIFAR_LAB_DATA", "MLFLOW_TRACKING_URI")}
    environment |= {"PYTHONPATH": str(SITE), "GPUS": gpus}
    code = ASK.format(commands=[*map(list, commands)], load=load)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, text=True, capture_output=True)
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "MLFLOW_DEFAULT_PREDICTION_DEVICE" not in done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_an_experiment_on_two_gpus_and_what_its_champion_says(tracked, unused):
    output, errors = run(unused, "2", experiment_arguments("--seeds", "2", "--epochs", "2", "--accelerator", "gpu"))
    assert output.endswith("exit code 0\n"), output + errors
    client = MlflowClient(f"sqlite:///{unused / 'mlflow.db'}")
    there, here = recorded(client), recorded(tracked.client)
    for name in "linear-seed0", "linear-seed1":
        assert there[name] == here[name]  # status, weights, every metric, number of heatmaps
    assert {status for status, *_ in there.values()} == {"FINISHED"}
    experiment = client.get_experiment_by_name("digits")
    for tracked_run in client.search_runs([experiment.experiment_id], "tags.kind = 'run'"):
        tags = tracked_run.data.tags
        assert (tags["accelerator"], tags["device"]) == ("cuda", "Make-believe GPU")
    (best,) = client.search_runs([experiment.experiment_id], "tags.best = 'true'")

    Image.new("RGB", (32, 32)).save(unused / "picture.png")
    reproduce, others = (
        ["reproduce", best.info.run_id],
        (["report", "linear", "cnn"], ["predict", "picture.png"], ["serve"]),
    )
    output, errors = run(unused, "1", reproduce, *others, load=True)
    assert output.count("exit code 0") == 4, output + errors
    assert "identical: every metric of every epoch, and the weights" in output
    assert "models:/digits@champion, probabilities of 0, 1, 2" in output
    assert output.endswith("(3, 10)\n"), errors


@pytest.mark.slow
def test_a_gpu_that_cannot_be_used_is_named_and_the_cpu_works(unused):
    command, linear, _, *options = experiment_arguments("--seeds", "1", "--epochs", "1")
    Image.new("RGB", (32, 32)).save(unused / "picture.png")
    refused = [command, linear, *options]
    output, errors = run(unused, "broken", refused, [*refused, "--accelerator", "cpu"], ["predict", "picture.png"])
    first, *_ = lines = errors.splitlines()
    assert sum(line.startswith("cifar_lab: ") for line in lines) == 1
    assert first.startswith("cifar_lab: torch can't use the GPU here: Found no NVIDIA driver on your system.")
    assert first.endswith("Without it: --accelerator cpu")
    assert [line for line in output.splitlines() if line.startswith("exit code")] == [
        f"exit code {n}" for n in (1, 0, 0)
    ]

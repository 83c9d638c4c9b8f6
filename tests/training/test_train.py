import os
import resource
from pathlib import Path

import pytest
import torch
from conftest import EPOCH_METRICS, EXPERIMENTS, WARM
from pytorch_lightning import Callback

from cifar_lab.config import load_config
from cifar_lab.data.cache import load_dataset, open_dataset
from cifar_lab.errors import UserError
from cifar_lab.files import is_whole
from cifar_lab.training.checkpoints import load_checkpoint, weights_digest
from cifar_lab.training.classifier import Diverged
from cifar_lab.training.train import resolve_config, train


@pytest.fixture
def digits(workplace):
    return load_dataset("digits")[0]


def config_of(name, dataset, *overrides):
    return resolve_config(load_config(str(EXPERIMENTS / f"{name}.toml"), list(overrides)), dataset, "fp32")


@pytest.mark.parametrize("name", ["linear", "cnn"])
def test_digits_are_learned(digits, tmp_path, name):
    result = train(config_of(name, digits), 0, digits, tmp_path / "run", "cpu")
    assert result.test["test/acc"] > 0.85
    assert result.epochs[-1].metrics["val/acc"] > 0.85


def test_every_completed_epoch_is_recorded_and_the_test_set_scored_once(digits, tmp_path):
    reports = []
    config = config_of("linear", digits, "trainer.epochs=3")
    result = train(config, 0, digits, tmp_path / "run", "cpu", lambda epochs: reports.append(len(epochs)))
    assert reports == [1, 2, 3, 3]
    assert [epoch.number for epoch in result.epochs] == [1, 2, 3]
    for epoch in result.epochs:
        assert set(epoch.metrics) == {*EPOCH_METRICS}
        assert epoch.metrics["train/cross_entropy"] == epoch.metrics["train/loss"]  # linear has no label smoothing
        assert epoch.confusion.sum() == config.data.val_size
        assert epoch.metrics["val/acc"] == pytest.approx(epoch.confusion.trace().item() / config.data.val_size)
    confusion = result.model.confusion["test"]
    assert confusion.sum(1).tolist() == torch.bincount(torch.tensor(digits.labels["test"])).tolist()
    assert set(result.test) == {"test/loss", "test/acc"}
    assert result.test["test/acc"] == pytest.approx(confusion.trace().item() / len(digits.labels["test"]))


def test_without_held_out_images_only_training_is_recorded_and_tta_scores_the_test_set_twice(digits, tmp_path):
    settings = ("trainer.epochs=2", "data.val_size=0", "trainer.tta=true", "trainer.precision=fp32")
    config = config_of("cnn", digits, *settings)
    result = train(config, 0, digits, tmp_path / "run", "cpu")
    assert [set(epoch.metrics) for epoch in result.epochs] == [{*EPOCH_METRICS} - {"val/loss", "val/acc"}] * 2
    assert [epoch.confusion for epoch in result.epochs] == [None, None]
    assert set(result.test) == {"test/loss", "test/acc", "test/acc_tta"}
    images, labels = torch.from_numpy(digits.images["test"]), torch.from_numpy(digits.labels["test"])
    with torch.no_grad():
        logits = [result.model.eval()(images), result.model.augmented_logits(images)]
    accuracies = [(one.argmax(1) == labels).float().mean().item() for one in logits]
    assert not logits[0].argmax(1).equal(logits[1].argmax(1))
    assert [result.test["test/acc"], result.test["test/acc_tta"]] == pytest.approx(accuracies)
    again = train(config, 0, digits, tmp_path / "run", "cpu")  # complete already
    assert figures(again) == figures(result)


MODELS = [("linear", "fp32"), ("cnn", "fp32"), ("cnn", "bf16")]


def figures(result):
    """Everything that a seed determines."""
    epochs = [
        ({**e.metrics, "epoch_seconds": 0}, e.confusion is not None and e.confusion.tolist()) for e in result.epochs
    ]
    return [result.weights_digest, result.test, epochs]


@pytest.mark.parametrize(("name", "precision"), MODELS)
def test_same_seed_gives_the_same_bits_and_another_seed_does_not(digits, tmp_path, name, precision):
    config = config_of(name, digits, "trainer.epochs=1", f"trainer.precision={precision}")
    runs = []
    for index, seed in enumerate((0, 0, 1)):
        torch.rand(index + 1)  # the state of the global generator does not matter
        runs.append(train(config, seed, digits, tmp_path / str(index), "cpu"))
    assert runs[0].weights_digest == runs[1].weights_digest != runs[2].weights_digest
    assert figures(runs[0]) == figures(runs[1]) != figures(runs[2])


def train_there(pipe, experiment, folder, digits_folder):
    dataset = open_dataset(digits_folder)
    config = resolve_config(load_config(experiment, ["trainer.epochs=1"]), dataset, "fp32")
    pipe.send(figures(train(config, 0, dataset, folder / "there", "cpu")))


def test_seed_0_gives_the_same_bits_in_another_process(digits, tmp_path):
    here, there = WARM.Pipe()
    experiment, folder = str(EXPERIMENTS / "cnn.toml"), digits.folder.resolve()
    process = WARM.Process(target=train_there, args=(there, experiment, tmp_path, folder))
    process.start()
    assert here.poll(60)
    result = train(config_of("cnn", digits, "trainer.epochs=1"), 0, digits, tmp_path / "here", "cpu")
    assert here.recv() == figures(result)
    process.join()


class Stop(Callback):
    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_start(self, *_):
        self.batches -= 1
        if self.batches < 0:
            raise SystemExit


AVERAGED = ("optim.ema=0.9", "data.val_size=0", "optim.clip_norm=1")
MIXED = ("optim.kind=adamw", "optim.learning_rate=0.01", "data.mixup=0.4", "data.cutmix=1", "optim.ema=0.8")
MOVED = ("optim.kind=sgd", "optim.learning_rate=0.02", "optim.schedule=cosine", "data.jitter=0.2", "data.cutout=8")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, [f"trainer.precision={precision}"]) for name, precision in MODELS),
        *(("cnn", settings) for settings in (["data.val_size=0"], AVERAGED, MIXED, MOVED)),
    ],
)
def test_a_run_in_pieces_is_the_run_in_one_go(digits, tmp_path, name, settings):
    config = config_of(name, digits, "trainer.epochs=4", *settings)
    whole = train(config, 0, digits, tmp_path / "whole", "cpu")
    reports = []
    for batches in (5, 13, 20):  # 10 batches are an epoch: none, one, then two epochs are completed
        with pytest.raises(SystemExit):
            train(config, 0, digits, tmp_path / "pieces", "cpu", lambda e: reports.append(len(e)), [Stop(batches)])
    pieces = train(config, 0, digits, tmp_path / "pieces", "cpu", lambda e: reports.append(len(e)))
    assert reports == [1, 2, 3, 4, 4]
    assert figures(pieces) == figures(whole)
    again = train(config, 0, digits, tmp_path / "pieces", "cpu", lambda e: reports.append(len(e)))  # complete already
    assert reports[5:] == [4]
    assert figures(again) == figures(whole)


def test_a_full_disk_leaves_the_earlier_checkpoint(digits, tmp_path):
    config, checkpoint = config_of("cnn", digits, "trainer.epochs=2"), tmp_path / "run"
    with pytest.raises(SystemExit):
        train(config, 0, digits, checkpoint, "cpu", callbacks=[Stop(15)])
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # as a full disk, it fails in the middle
    try:
        with pytest.raises(UserError, match=f"cannot write {checkpoint}: File too large"):
            train(config, 0, digits, checkpoint, "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["run"]
    whole = train(config, 0, digits, tmp_path / "whole", "cpu")
    assert figures(train(config, 0, digits, checkpoint, "cpu")) == figures(whole)


def test_a_damaged_checkpoint_is_named(digits, tmp_path):
    (tmp_path / "run").write_bytes(b"PK no checkpoint")
    with pytest.raises(UserError, match=f"the checkpoint {tmp_path}/run is damaged; delete it and start again"):
        train(config_of("linear", digits), 0, digits, tmp_path / "run", "cpu")


def test_one_flipped_bit_of_a_checkpoint_is_found(digits, tmp_path):
    config, checkpoint = config_of("linear", digits, "trainer.epochs=2"), tmp_path / "run"
    with pytest.raises(SystemExit):
        train(config, 0, digits, checkpoint, "cpu", callbacks=[Stop(15)])
    whole = bytearray(checkpoint.read_bytes())
    weights = load_checkpoint(checkpoint)["state_dict"]["network.head.weight"].numpy().tobytes()
    place = whole.index(weights) + 1000
    whole[place] ^= 1
    checkpoint.write_bytes(whole)
    assert not is_whole(checkpoint)
    with pytest.raises(UserError, match="is damaged; delete it and start again"):
        train(config, 0, digits, checkpoint, "cpu")


def test_a_file_that_is_no_checkpoint_is_named(digits, tmp_path):
    torch.save({"epoch": 1}, tmp_path / "run")
    with pytest.raises(UserError, match="is damaged; delete it and start again"):
        train(config_of("linear", digits), 0, digits, tmp_path / "run", "cpu")


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def test_a_checkpoint_can_run_no_code(digits, tmp_path, workplace):
    torch.save({"state_dict": Trap()}, tmp_path / "run")
    with pytest.raises(UserError, match="is damaged"):
        train(config_of("linear", digits), 0, digits, tmp_path / "run", "cpu")
    assert not (workplace / "trapped").exists()


def test_non_finite_loss_says_where(digits, tmp_path):
    config = config_of("linear", digits, "optim.learning_rate=1e38")
    with pytest.raises(Diverged, match=r"train loss is (nan|inf) at epoch 1, step \d+ of 10; try a smaller"):
        train(config, 0, digits, tmp_path / "run", "cpu")


def test_a_loss_far_above_guessing_is_no_result(digits, tmp_path):
    config = config_of("linear", digits, "optim.learning_rate=1e18")
    far = r"train loss is 1\.\d+e\+19 after the last epoch, that of guessing 2\.3: the training has diverged; try"
    for _ in range(2):  # continued, it comes to the same end
        with pytest.raises(Diverged, match=far):
            train(config, 0, digits, tmp_path / "run", "cpu")


DROPPING = """
import torch.nn.functional as F
from cifar_lab.networks.linear import Config, Network as Linear

class Network(Linear):
    def forward_pixels(self, *arguments):
        return F.dropout(super().forward_pixels(*arguments), 0.3)  # in validation and test too
"""


def test_what_layers_draw_follows_from_seed_and_epoch(digits, tmp_path):
    (Path("networks")).mkdir()
    Path("networks/dropping.py").write_text(DROPPING)
    config = config_of("linear", digits, "trainer.epochs=3", "model.kind=dropping")
    state = torch.get_rng_state()
    whole = train(config, 0, digits, tmp_path / "whole", "cpu")
    assert torch.get_rng_state().equal(state)
    torch.rand(1)
    with pytest.raises(SystemExit):
        train(config, 0, digits, tmp_path / "pieces", "cpu", callbacks=[Stop(17)])
    assert figures(train(config, 0, digits, tmp_path / "pieces", "cpu")) == figures(whole)
    assert figures(train(config, 0, digits, tmp_path / "pieces", "cpu")) == figures(whole)  # complete already
    plain = config_of("linear", digits, "trainer.epochs=3")
    assert train(plain, 0, digits, tmp_path / "plain", "cpu").weights_digest != whole.weights_digest


def test_the_learning_rate_is_that_of_the_last_step(digits, tmp_path):
    config = config_of("linear", digits, "trainer.epochs=2", "optim.warmup=0.0")  # 10 steps each
    rates = [epoch.metrics["lr"] for epoch in train(config, 0, digits, tmp_path / "run", "cpu").epochs]
    assert rates == pytest.approx([0.01 * 11 / 20, 0.01 * 1 / 20])


def test_checkpoint_holds_the_weights_and_loads_without_unpickling(digits, tmp_path):
    result = train(config_of("linear", digits, "trainer.epochs=1"), 0, digits, tmp_path / "run", "cpu")
    state = torch.load(tmp_path / "run", weights_only=True)["state_dict"]
    torch.testing.assert_close(state, dict(result.model.state_dict()))


def test_digest_sees_one_bit_a_name_and_a_shape():
    first = torch.nn.Linear(2, 2)
    second = torch.nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first) == weights_digest(second)
    second.weight.data[0, 0] = torch.nextafter(second.weight.data[0, 0], torch.tensor(9.0))
    assert weights_digest(first) != weights_digest(second)
    assert weights_digest(torch.nn.Sequential(first)) != weights_digest(first)


def test_resolved_config_has_nothing_left_open(digits):
    config = config_of("cnn", digits)
    assert config.data.val_size == 143
    assert config.trainer.precision == "fp32"
    images = len(digits.labels["train"]) - 143
    assert config_of("cnn", digits, f"data.train_size={images}") == config
    assert config_of("cnn", digits, f"data.train_size={images - 1}").data.train_size == images - 1


def weights(digits, folder, *settings):
    """The weights of `linear` after one step of plain SGD per epoch, without augmentation."""
    overrides = ["optim.kind=sgd", "optim.momentum=0", "optim.learning_rate=0.1", "optim.warmup=0"]
    plain = ["optim.schedule=constant", "trainer.batch_size=1000000", "data.flip=false", "data.translate=0"]
    config = config_of("linear", digits, *overrides, *plain, *settings)
    folder.mkdir(exist_ok=True)
    return train(config, 0, digits, folder / "-".join(settings), "cpu").model.network.head.weight.detach()


def test_the_average_of_the_weights_is_what_a_run_ends_with(digits, tmp_path):
    first, second = (weights(digits, tmp_path, f"trainer.epochs={epochs}") for epochs in (1, 2))
    averaged = weights(digits, tmp_path, "trainer.epochs=2", "optim.ema=0.9")
    torch.testing.assert_close(averaged, 0.9 * first + 0.1 * second)
    assert not first.equal(second)


def test_a_gradient_is_clipped_to_its_largest_norm(digits, tmp_path):
    first, second = (weights(digits, tmp_path, f"trainer.epochs={epochs}", "optim.clip_norm=1e-3") for epochs in (1, 2))
    assert 0.9e-4 < (second - first).norm() < 1e-4  # less than learning rate * norm only by what the bias has of it
    first, second = (weights(digits, tmp_path, f"trainer.epochs={epochs}") for epochs in (1, 2))
    assert (second - first).norm() > 1e-3


def test_fewer_and_mislabelled_images_are_what_is_trained_on(digits, tmp_path):
    few = train(
        config_of("linear", digits, "data.train_size=256", "trainer.epochs=1"), 0, digits, tmp_path / "f", "cpu"
    )
    assert few.model.confusion["train"].sum() == 256
    settings = ("data.label_noise=0.5", "trainer.epochs=6")
    noisy = train(config_of("linear", digits, *settings), 0, digits, tmp_path / "noisy", "cpu").epochs[-1].metrics
    assert noisy["train/acc"] < 0.6 < 0.8 < noisy["val/acc"]  # validation labels are right


def test_varied_splits_follow_the_seed(digits, tmp_path):
    def digest(name, seed, *settings):
        config = config_of("linear", digits, "trainer.epochs=1", *settings)
        result = train(config, seed, digits, tmp_path / name, "cpu")
        return result.weights_digest, result.predictions["val"][1].tolist()

    varied = digest("varied", 3, "data.splits=varied")
    assert varied == digest("other", 3, "data.split_seed=3")
    assert varied[1] != digest("fixed", 3)[1]


def test_predictions_are_those_of_the_last_epoch_in_the_order_of_the_images(digits, tmp_path):
    config = config_of("linear", digits, "trainer.epochs=2")
    result = train(config, 0, digits, tmp_path / "run", "cpu")
    probabilities, labels = result.predictions["test"]
    assert (probabilities.dtype, labels.tolist()) == (torch.float16, digits.labels["test"].tolist())
    with torch.no_grad():
        expected = result.model.eval()(torch.from_numpy(digits.images["test"])).softmax(1)
    torch.testing.assert_close(probabilities.float(), expected, atol=1e-3, rtol=0)
    val, val_labels = result.predictions["val"]
    assert (val.argmax(1) == val_labels).float().mean().item() == pytest.approx(result.epochs[-1].metrics["val/acc"])
    again = train(config, 0, digits, tmp_path / "run", "cpu")  # complete already
    assert again.predictions["val"][0].equal(val)

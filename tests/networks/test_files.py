"""Networks in files outside the package: written by a user, found by their kind, wrong in many ways."""

import pickle
import subprocess
import sys

import pytest
import torch

from cifar_lab.config import load_config
from cifar_lab.data.cache import load_dataset
from cifar_lab.errors import UsageError
from cifar_lab.networks.build import check_network, make_model
from cifar_lab.training.batches import TrainBatches

MINE = """
from pydantic import Field
from torch import nn
from cifar_lab.config import ModelConfig

class Config(ModelConfig):
    width: int = Field(8, ge=1)
    share: float = Field(0.1, ge=0, lt=1)

class Network(nn.Module):
    def __init__(self, config, outputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, config.width, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Dropout(config.share),
            nn.Linear(64 * config.width, outputs),
        )

    def forward(self, images):
        return self.layers(images)
"""


@pytest.fixture
def write(workplace):
    """Writes networks/mine.py and experiments/mine.toml."""
    for folder in "networks", "experiments":
        (workplace / folder).mkdir()
    (workplace / "experiments" / "mine.toml").write_text('[model]\nkind = "mine"\n')

    def write(text):
        (workplace / "networks" / "mine.py").write_text(text)

    write(MINE)
    return write


def test_a_file_is_found_by_its_kind_with_settings_of_its_own(write):
    config = load_config("mine", ["model.width=4"])
    assert config.flat()["model.width"] == 4
    assert config.toml(changes_only=True) == '[model]\nkind = "mine"\nwidth = 4\n'
    with pytest.raises(UsageError, match=r"unknown key model\.widht; known here: kind, one_vs_one, width, share"):
        load_config("mine", ["model.widht=4"])
    with pytest.raises(UsageError, match=r"model\.share = 1.5: Input should be less than 1"):
        load_config("mine", ["model.share=1.5"])
    dataset, _ = load_dataset("digits")
    assert make_model(load_config("mine"), dataset).network.layers[0].out_channels == 8


def test_the_hash_follows_the_text_of_the_file(write):
    first = load_config("mine").hash("images")
    assert load_config("mine").hash("images") == first
    write(MINE + "# changed\n")
    assert load_config("mine").hash("images") != first


def test_a_config_travels_to_a_process_without_the_file(write, tmp_path):
    config = load_config("mine", ["model.width=3"])
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    program = (
        "import pickle, sys; config = pickle.load(open('config', 'rb'));"
        "from cifar_lab.networks.build import make_network;"
        "print(config.hash('images'), make_network(config, 7).network.layers[-1].out_features)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [config.hash("images"), "7"]


def test_a_name_of_the_package_is_refused(write, workplace):
    (workplace / "networks" / "cnn.py").write_text(MINE)
    with pytest.raises(UsageError, match=r"networks/cnn\.py has the name of a network of cifar_lab; rename it"):
        load_config("mine", ["model.kind=cnn"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("import nn", "import nm", r"networks/mine\.py, line 3: ImportError: cannot import name 'nm'"),
        ("class Network(nn.Module):", "class Network(nn.Module)", r"networks/mine\.py, line 10: SyntaxError"),
        ("class Network", "class Net", r"networks/mine\.py defines no class Network"),
        ("(ModelConfig)", "", r"networks/mine\.py: Config is no subclass of cifar_lab\.config\.ModelConfig"),
        ("self.layers(images)", "self.layer(images)", r"networks/mine\.py, line 19: AttributeError: .* 'layer'"),
        ("64 * config", "65 * config", r"networks/mine\.py, line 19: RuntimeError: .*mat1 and mat2 shapes"),
        ("width, outputs)", "width, 3)", r"networks/mine\.py: forward gives \(2, 3\) for 2 images, not \(2, 10\)"),
        ("        )\n", "        ).double()\n", r"networks/mine\.py, line 19: RuntimeError"),
        ("self.layers(images)", "self.layers(images) / 0", r"networks/mine\.py: the scores .* are not finite"),
        ("self.layers(images)", "self.layers(images).detach()", r"networks/mine\.py, line|networks/mine\.py: "),
    ],
)
def test_a_mistake_costs_one_line_with_the_line_of_the_file(write, old, new, message):
    assert old in MINE
    write(MINE.replace(old, new))
    dataset, _ = load_dataset("digits")
    with pytest.raises(UsageError, match=message) as caught:
        check_network(load_config("mine"), dataset)
    assert "\n" not in str(caught.value)


AUGMENT = """

from torchvision.transforms import v2
from cifar_lab.networks.mlp import Config, Network

def augment(images, labels, generator):
    drawn = torch.randint(0, 9, (len(images), 1, 1, 1), generator=generator)
    return v2.RandomPosterize(3, p=0.5)(images) // 2 + drawn.to(torch.uint8)
"""


def test_a_file_with_an_augmentation_of_its_own(write):
    write("import torch" + AUGMENT)
    dataset, _ = load_dataset("digits")
    config = load_config("mine", ["data.val_size=97", "trainer.epochs=2", "optim.kind=adamw"])
    check_network(config, dataset)
    images = torch.zeros(100, 32, 32, 3, dtype=torch.uint8)

    def batch(seed, epoch):
        return next(iter(TrainBatches(images, torch.zeros(100, dtype=torch.int64), config, seed, lambda: epoch)))[0]

    assert batch(0, 0).unique().tolist() == list(range(9))
    assert batch(0, 0).equal(batch(0, 0))
    assert not batch(0, 0).equal(batch(0, 1))
    assert not batch(0, 0).equal(batch(1, 0))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("// 2", "/ 2", r"mine\.py: augment gives \(2, 3, 32, 32\) torch\.float32, not \(2, 3, 32, 32\) torch\.uint8"),
        ("(images) //", "(images)[:, :1] //", r"mine\.py: augment gives \(2, 1, 32, 32\) torch\.uint8"),
        ("drawn.to", "drwan.to", r"mine\.py, line 8: NameError: name 'drwan' is not defined"),
    ],
)
def test_a_mistake_in_an_augmentation_costs_one_line(write, old, new, message):
    write("import torch" + AUGMENT.replace(old, new))
    with pytest.raises(UsageError, match=message):
        check_network(load_config("mine"), load_dataset("digits")[0])

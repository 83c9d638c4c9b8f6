import os
import re
import tomllib

import pytest
from conftest import REPOSITORY

from cifar_lab.config import Config, load_config
from cifar_lab.errors import UsageError


def write(tmp_path, text):
    path = tmp_path / "x.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nkind = 'cnn'\nwidths = [1" + 30 * "0" + ", 1, 1]", "model.widths.0 = 1"),
        ("x = " + 2000 * "[", "x.toml: "),
        ("x = " + 5000 * "9", "x.toml: "),
        ("#" * (1 << 20) + "\n", "has more than 1,048,576 bytes"),
        ('x = "\udcff"', "x.toml: "),
    ],
)
def test_a_file_that_is_made_to_break_costs_one_line(tmp_path, text, message):
    (tmp_path / "x.toml").write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError) as caught:
        load_config(str(tmp_path / "x.toml"))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.toml")
    for place in tmp_path / "x.toml", tmp_path / "zero.toml":
        if not place.exists():
            place.symlink_to("/dev/zero")
        with pytest.raises(UsageError, match=r"\.toml is not a file"):
            load_config(str(place))


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf[model]\nkind = 'linear'\n")
    assert load_config(str(tmp_path / "x.toml")).model.kind == "linear"


def test_file_says_only_what_differs_and_overrides_win(tmp_path):
    path = write(tmp_path, '[model]\nkind = "cnn"\nwidths = [8, 9, 10]\n[optim]\nlearning_rate = 0.2\n')
    config = load_config(path, ["optim.learning_rate=5e-4", "data.flip=false", "trainer.precision=bf16"])
    assert (config.model.widths, config.model.depth) == ((8, 9, 10), 2)
    assert config.optim.learning_rate == 5e-4
    assert (config.data.flip, config.trainer.precision) == (False, "bf16")


def test_dumped_config_loads_to_the_same_config(tmp_path):
    config = load_config(write(tmp_path, '[model]\nkind = "linear"\n'), ["data.val_size=50"])
    assert load_config(write(tmp_path, config.toml())) == config


def test_hash_depends_on_every_setting_and_on_the_images_only(tmp_path):
    path = write(tmp_path, '[model]\nkind = "cnn"\n')
    config = load_config(path)
    assert config.hash("a") == load_config(path, ["trainer.epochs=8"]).hash("a")
    others = [load_config(path, [f"{key}={value}"]) for key, value in CHANGES.items()]
    others += [load_config(path, ["optim.schedule=step", *change]) for change in STEPS]
    assert set(CHANGES) | {"model.kind", "optim.milestones", "optim.gamma"} == set(config.flat())
    assert len({other.hash("a") for other in [config, *others]} | {config.hash("b")}) == len(others) + 2


STEPS = ([], ["optim.milestones=[0.4]"], ["optim.gamma=0.2"])
CHANGES = {
    "model.one_vs_one": "true",
    "data.labels": "coarse",
    "data.classes": "['cat', 'dog']",
    "model.directions": 8,
    "model.widths": "[64, 256, 255]",
    "model.depth": 1,
    "model.bias": "true",
    "data.val_size": 9,
    "data.split_seed": 1,
    "data.splits": "varied",
    "data.train_size": 1000,
    "data.label_noise": 0.1,
    "data.flip": "false",
    "data.translate": 0,
    "data.jitter": 0.1,
    "data.cutout": 8,
    "data.mixup": 0.2,
    "data.cutmix": 1,
    "data.sides": "[16, 32]",
    "optim.kind": "sgd",
    "optim.learning_rate": 1,
    "optim.decay_vectors": "false",
    "optim.schedule": "cosine",
    "optim.clip_norm": 1,
    "optim.ema": 0.9,
    "optim.momentum": 0,
    "optim.weight_decay": 0.01,
    "optim.filter_learning_rate": 1,
    "optim.filter_momentum": 0,
    "optim.label_smoothing": 0.1,
    "optim.warmup": 0.1,
    "trainer.epochs": 1,
    "trainer.batch_size": 1,
    "trainer.micro_batch_size": 1,
    "trainer.precision": "fp32",
    "trainer.threads": 2,
    "trainer.devices": 2,
    "trainer.captured": "true",
    "trainer.tta": "true",
}


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (
            '[model]\nkind = "cnn"\nwidht = 3\n',
            None,
            "unknown key model.widht; known here: kind, one_vs_one, directions, widths, depth, bias",
        ),
        ('[model]\nkind = "linear"\n', "model.depth=3", "unknown key model.depth; known here: kind, one_vs_one"),
        ('[model]\nkind = "cnn"\n', "optimizer.lr=3", "unknown key optimizer; known here: model, data, optim, trainer"),
        (
            '[model]\nkind = "cnn"\n',
            "optim.learning_rate=fast",
            "optim.learning_rate = 'fast': Input should be a valid",
        ),
        ('[model]\nkind = "cnn"\n', "optim.learning_rate=nan", "optim.learning_rate = nan: Input should be a finite"),
        ('[model]\nkind = "cnn"\n', "data.flip=1", "data.flip = 1: Input should be a valid boolean"),
        ('[model]\nkind = "cnn"\n', "trainer.epochs=0", "trainer.epochs = 0: Input should be greater than or equal to"),
        ('[model]\nkind = "cnn"\n', "model.widths=[8, 8]", "model.widths.2 is missing"),
        ('[model]\nkind = "cnn"\n', "data.sides=[]", "data.sides = []: "),
        (
            '[model]\nkind = "cnn"\n',
            "data.classes=['cat']",
            "data.classes = ['cat']: name two or more different classes",
        ),
        ('[model]\nkind = "cnn"\n', "data.classes=['cat', 'cat']", "name two or more different classes"),
        (
            '[model]\nkind = "cnn"\n',
            "data.sides=[16, 33]",
            "data.sides.1 = 33: Input should be less than or equal to 32",
        ),
        ('[model]\nkind = "linear"\n', "data.sides=[16]", "data.sides = [16]: linear takes 32 pixels only"),
        (
            '[model]\nkind = "cnn"\n',
            "trainer.micro_batch_size=3",
            "trainer.batch_size = 500 is no multiple of trainer.micro_batch_size = 3",
        ),
        (
            '[model]\nkind = "cnn"\n',
            "trainer.devices=3",
            "trainer.batch_size = 500 can't be shared by 3 devices",
        ),
        (
            '[model]\nkind = "tree"\n',
            None,
            "model.kind = 'tree': use linear, cnn, mlp, resnet, torchvision, or write networks/tree.py",
        ),
        ('[model]\nkind = "cnn"\n', "epochs=3", "write --set section.key=value"),
        ("[model]\ndepth = 3\n", None, "model.kind is missing; write [model] kind = one of linear, cnn"),
        ("[data]\n", None, "model.kind is missing"),
        ("model = 3\n", "model.depth=3", "model is not a section; write [model]"),
        ("[model\n", None, "Expected ']'"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, text, override, message):
    with pytest.raises(UsageError) as caught:
        load_config(write(tmp_path, text), [override] if override else [])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["linear", "cnn", "cnn_speedrun"])
def test_experiment_files_state_a_claim_and_only_what_differs_from_the_defaults(name):
    path = REPOSITORY / "experiments" / f"{name}.toml"
    lines = path.read_text().splitlines()
    assert len(lines) <= 25
    claim = " ".join(line for line in lines if line.startswith("#"))
    assert re.search(r"test accuracy \d+\.\d+ ± \d+\.\d+ % \(n = \d+\)", claim)
    assert f"make experiment EXPERIMENTS={path.stem}" in claim
    config = load_config(str(path))
    defaults = Config(model={"kind": config.model.kind}).flat()
    said = {f"{section}.{key}" for section, keys in tomllib.loads(path.read_text()).items() for key in keys}
    assert {key for key, value in config.flat().items() if value != defaults[key]} == said - {"model.kind"}


def test_unknown_experiment_lists_the_known_ones(workplace):
    (workplace / "experiments").mkdir()
    (workplace / "experiments" / "mine.toml").write_text("")
    with pytest.raises(UsageError, match="no experiment 'yours'; experiments/ has: mine"):
        load_config("yours")

import numpy as np
import pytest
from PIL import Image

from cifar_lab.sources import CLASSES


def write_images(folder, per_class=(12, 4), suffix="png"):
    """A CIFAR-10 of image files: each class is one grey level plus noise, so that it can be learned."""
    noise = np.random.default_rng(0)
    for split, count in zip(("train", "test"), per_class, strict=True):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(25 * label + noise.integers(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index:04}.{suffix}")
    return folder


@pytest.fixture
def image_folder(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty current directory: no data, no runs, nothing given by the environment."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CIFAR_LAB_DATA", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder

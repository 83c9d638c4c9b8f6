import re

import numpy as np
from conftest import write_images
from PIL import Image

from cifar_lab.__main__ import main


def test_images_are_described_and_drawn(workplace, capsys):
    write_images(workplace / "data" / "images")
    assert main(["data"]) == 0
    output = capsys.readouterr().out
    assert "CIFAR-10 (PNG copy), MLflow experiment cifar10-png\nfrom data/images, decoded in data/cache/" in output
    assert re.search("digest [0-9a-f]{64}\n", output)
    assert re.search(r"\ncat +12 +4\n", output)
    assert re.search(r"\nall +120 +40\n", output)
    assert "the first 10 training images of each class are drawn in samples.png" in output
    with Image.open(workplace / "samples.png") as picture:
        grey = np.asarray(picture.convert("L"))
    for label in range(10):  # of each class a row of images in its own shade
        shade = (grey >= 25 * label + 2) & (grey < 25 * label + 18)
        rows = np.flatnonzero(shade.sum(axis=1) > grey.shape[1] / 3)
        assert len(rows) > 15, label


def test_images_that_are_there_twice_are_counted(workplace, capsys):
    images = write_images(workplace / "data" / "images", (3, 2))
    picture = (images / "train" / "cat" / "0000.png").read_bytes()
    for copy in "train/cat/0001.png", "train/dog/0002.png", "test/ship/0001.png":
        (images / copy).write_bytes(picture)
    assert main(["data"]) == 0
    output = capsys.readouterr().out
    assert "\n2 train images repeat the pixels of an earlier one\n" in output
    assert "\n1 test images repeat the pixels of a train image\n" in output


def test_what_is_missing_costs_one_line(workplace, capsys):
    assert main(["data", "--data-dir", "nowhere"]) == 1
    assert capsys.readouterr().err == "cifar_lab: data directory nowhere does not exist\n"

"""The champion classifies image files of many kinds, on the command line."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import Driver
from PIL import Image

from cifar_lab.commands.predict import read_image
from cifar_lab.data.cache import open_dataset

pytestmark = pytest.mark.slow


def predict(tracked, *arguments):
    driver = Driver(tracked.folder, "predict", *map(str, arguments))
    code = driver.wait()
    assert "Traceback" not in driver.output()
    return code, driver.output()


def answers(output):
    """The JSON of an output that begins with errors."""
    return json.loads(output[output.index("[\n") :])


@pytest.fixture(scope="module")
def digits(tracked):
    return open_dataset(next(tracked.folder.glob("data/cache/*")))


@pytest.fixture
def pictures(digits, tmp_path):
    """Twelve test images as files of many kinds; their labels by name."""
    labels = {}
    for index, suffix in enumerate(["png", "jpg", "bmp", "gif", "webp", "tif"] * 2):
        name = f"{index:02}.{suffix}"
        image = Image.fromarray(digits.images["test"][index])
        if index >= 6:
            image = image.resize((320, 320)).convert("L")
        image.save(tmp_path / name)
        labels[name] = digits.classes[digits.labels["test"][index]]
    return tmp_path, labels


def test_the_champion_knows_digits_in_any_file(tracked, pictures):
    folder, labels = pictures
    code, output = predict(tracked, folder, "--json", "--top", "2")
    assert code == 0, output
    found = {answer["file"]: answer["predictions"] for answer in answers(output)}
    assert list(found) == [str(folder / name) for name in sorted(labels)]
    correct = [found[str(folder / name)][0]["class"] == label for name, label in labels.items()]
    assert sum(correct) >= 10
    for first, second in found.values():
        assert 1 >= first["probability"] >= second["probability"] >= 0


def test_what_cannot_be_read_is_named_and_the_rest_is_answered(tracked, pictures, tmp_path):
    folder, _ = pictures
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "empty.png").write_bytes(b"")
    (broken / "text.jpg").write_text("not a picture")
    (broken / "cut.png").write_bytes((folder / "00.png").read_bytes()[:200])
    (broken / "page.pdf").write_bytes(b"%PDF-1.4")
    os.mkfifo(tmp_path / "pipe")
    exif = Image.open(folder / "00.png").getexif()
    exif[0x0112] = 6
    Image.open(folder / "00.png").save(
        broken / "exif.png", exif=b"Exif\0\0MM\0*\0\0\0\x08" + b"\0\1\x01\x12" + b"\xff" * 5
    )
    named = tmp_path / "\udcff\x1b[31m.png"  # a name that is not UTF-8, and would colour the terminal
    shutil.copy(folder / "00.png", named)
    others = (broken / "no.png", tracked.folder, tmp_path / "pipe", named)
    code, output = predict(tracked, folder / "0[01]*", *sorted(broken.iterdir()), *others)
    assert code == 1
    lines = output.splitlines()
    found = {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}
    assert found[str(broken / "no.png")] == "no such file"
    for name in ("empty.png", "text.jpg", "cut.png", "page.pdf"):
        assert found[str(broken / name)].startswith("not a readable image (")
    for name in ("00.png", "01.jpg"):
        first, *_ = found[str(folder / name)].split(", ")
        assert first.split()[0] in "0123456789"
        assert first.endswith("%")
    assert found[str(tmp_path / "pipe")] == "not a file"
    assert found[str(tmp_path / r"\udcff\x1b[31m.png")] == found[str(folder / "00.png")]
    assert len([line for line in lines if str(broken) in line]) == 6


def test_a_run_answers_like_the_model_that_was_registered_from_it(tracked, pictures):
    folder, _ = pictures
    run_id = tracked.client.get_model_version_by_alias("digits", "champion").run_id
    outputs = [predict(tracked, folder, "--json", *model) for model in ((), ("--model", run_id[:8]))]
    champion, run = (answers(output) for _, output in outputs)
    for one, other in zip(champion, run, strict=True):
        assert [p["class"] for p in one["predictions"]] == [p["class"] for p in other["predictions"]]
        values = [[p["probability"] for p in answer["predictions"]] for answer in (one, other)]
        np.testing.assert_allclose(*values, atol=1e-4)


def test_mistakes_cost_one_line(tracked, tmp_path):
    parent = tracked.runs("tags.kind = 'repeats'")[0]
    (tmp_path / "a.png").write_text("")
    (tmp_path / "nothing").mkdir()
    for arguments, message in (
        ((tmp_path / "nothing",), "no image files in this folder"),
        ((tmp_path, "--model", "xyz"), "no run has an id that begins with xyz"),
        ((tmp_path, "--model", parent.info.run_id), "is not a finished run (linear, FINISHED)"),
        ((tmp_path, "--model", "models:/nothing@champion"), "models:/nothing@champion: "),
    ):
        code, output = predict(tracked, *arguments)
        assert (code, output.count("\n")) == (1, 1), output
        assert message in output


SQUARE = np.zeros((64, 64), np.uint8)
SQUARE[:32] = 200


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(SQUARE), 200),
        (Image.fromarray(SQUARE.astype(np.uint16) * 257), 200),
        (Image.fromarray(SQUARE.astype(np.float32) / 255), 200),
        (Image.fromarray(SQUARE).convert("1", dither=Image.Dither.NONE), 255),
        (Image.fromarray(SQUARE).convert("P"), 200),
        (Image.fromarray(np.stack([SQUARE] * 3 + [np.full((64, 64), 0, np.uint8)], -1)), 255),  # transparent
        (Image.fromarray(np.stack([SQUARE, np.full((64, 64), 255, np.uint8)], -1)), 200),
        (Image.fromarray(np.pad(SQUARE, ((0, 0), (100, 100)))), 200),  # the middle square
    ],
    ids=["L", "16 bits", "float", "1", "P", "transparent", "LA", "wide"],
)
def test_every_mode_is_read_as_what_it_shows(tmp_path, image, expected):
    image.save(tmp_path / "image.tif")
    pixels = read_image(tmp_path / "image.tif")
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    assert pixels[8, 16].tolist() == pytest.approx([expected] * 3, abs=1)


def test_a_photo_that_is_lying_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn it by 90 degrees clockwise
    Image.fromarray(SQUARE).save(tmp_path / "image.png", exif=exif)
    pixels = read_image(tmp_path / "image.png")
    assert [pixels[16, 4, 0], pixels[16, 28, 0]] == [0, 200]

import base64
import hashlib
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import write_images
from packing import leftovers, pack
from PIL import Image

from cifar_lab.commands.predict import read_image
from cifar_lab.data import archives
from cifar_lab.data.cache import load_dataset
from cifar_lab.data.catalogue import CIFAR10
from cifar_lab.errors import DataError

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.mark.parametrize("name", ["images", "cifar10.tar.gz", "CIFAR-10_images.zip"])
def test_image_files_read_the_same_from_folder_and_archives(image_folder, tmp_path, name):
    place = image_folder if name == "images" else pack(image_folder, tmp_path / name)
    dataset, fallback_reason = load_dataset("cifar10", place)
    assert (dataset.name, dataset.title, dataset.classes, fallback_reason) == (
        "cifar10-png",
        "CIFAR-10 (PNG copy)",
        CIFAR10.classes,
        "",
    )
    assert dataset.images["train"].shape == (120, 32, 32, 3)
    for split in "train", "test":
        files = [file for name in CIFAR10.classes for file in (image_folder / split / name).iterdir()]
        expected = {(CIFAR10.classes.index(file.parent.name), np.asarray(Image.open(file)).tobytes()) for file in files}
        pixels = [image.tobytes() for image in dataset.images[split]]
        assert {*zip(dataset.labels[split].tolist(), pixels, strict=True)} == expected
        assert pixels == sorted(pixels, key=lambda image: hashlib.sha256(image).digest())
    pixels = dataset.images["train"] / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(dataset.std, pixels.std(axis=(0, 1, 2)))


def test_digest_is_of_the_images_not_of_their_packing(image_folder, tmp_path):
    folder, _ = load_dataset("auto", image_folder)
    archive, _ = load_dataset("auto", pack(image_folder, tmp_path / "cifar10.zip"))
    assert folder.digest == archive.digest
    assert folder.folder != archive.folder
    (image_folder / "test" / "cat" / "0000.png").unlink()
    changed, _ = load_dataset("auto", image_folder)
    assert changed.digest != folder.digest


def test_jpeg_files_are_named_as_the_copy_they_are(tmp_path):
    dataset, _ = load_dataset("auto", write_images(tmp_path / "x", (1, 1), "jpg"))
    assert (dataset.name, dataset.title) == ("cifar10-jpeg", "CIFAR-10 (JPEG copy)")


def test_what_a_file_is_says_its_content_not_its_name(image_folder):
    file = image_folder / "test" / "dog" / "0001.png"
    Image.open(file).save(file, "JPEG")
    assert load_dataset("auto", image_folder)[0].name == "cifar10-jpeg"


LEFT = np.zeros((32, 32), np.uint8)
LEFT[:, :16] = 200
ODD = {
    "grey16.png": (Image.fromarray(LEFT.astype(np.uint16) * 257), 200),
    "palette.gif": (Image.fromarray(LEFT).convert("P"), 200),
    "transparent.png": (Image.fromarray(np.stack([LEFT] * 3 + [np.zeros_like(LEFT)], -1)), 255),
    "cmyk.jpg": (Image.fromarray(np.stack([LEFT] * 3, -1)).convert("CMYK"), 200),
    "upper.PNG": (Image.fromarray(LEFT), 200),
    "photo.webp": (Image.fromarray(np.stack([LEFT] * 3, -1)), 200),
}

INTERLACED = (  # such as Pillow reads but does not write
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAAAAAEhFhW+AAAAIUlEQVR42mM4cYKBgYEoAkzRjQHnjAoMOgEMiVEFI1EBAEYDkBCE"
    "DcYaAAAAAElFTkSuQmCC"
)


def test_training_and_predict_read_a_file_alike(image_folder):
    folder = image_folder / "train" / "cat"
    shutil.rmtree(folder)
    folder.mkdir()
    for name, (image, _) in ODD.items():
        image.save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 3  # by 180 degrees
    Image.fromarray(LEFT).save(folder / "turned.png", exif=turned)
    (folder / "interlaced.png").write_bytes(base64.b64decode(INTERLACED))
    dataset, _ = load_dataset("auto", image_folder)
    images = {image.tobytes() for image in dataset.images["train"][dataset.labels["train"] == 3]}
    files = sorted(folder.iterdir())
    assert images == {read_image(file).tobytes() for file in files}
    for file in files:
        left = 0 if file.name == "turned.png" else ODD.get(file.name, (None, 200))[1]
        assert read_image(file)[16, 4].tolist() == pytest.approx([left] * 3, abs=4), file


def test_what_is_left_out_is_counted_and_named(image_folder, capsys):
    whole, _ = load_dataset("auto", image_folder)
    capsys.readouterr()
    (image_folder / "train" / "cat" / "more").mkdir()
    shutil.copy(image_folder / "train" / "cat" / "0000.png", image_folder / "train" / "cat" / "more" / "0000.png")
    (image_folder / "train" / "dog" / "notes.txt").write_text("x")
    (image_folder / "train" / "dog" / "gone.png").symlink_to("nowhere")
    (image_folder / "train" / "dog" / "self.png").symlink_to("self.png")
    os.mkfifo(image_folder / "train" / "dog" / "pipe.png")
    for litter in (".DS_Store", "Thumbs.db"):
        (image_folder / "test" / "dog" / litter).write_text("x")
    again, _ = load_dataset("auto", image_folder)
    assert again.digest == whole.digest
    told = f"{image_folder}: left out, because no image of a class: train/cat/more/0000.png, train/dog/gone.png, "
    assert told + "train/dog/notes.txt, ... (5 in all)\n" in capsys.readouterr().err


def test_members_that_an_archive_has_twice_count_once(image_folder, tmp_path):
    archive = tmp_path / "cifar10.tar"
    with tarfile.open(archive, "w") as file:
        for _ in range(2):  # as `tar --append` leaves it
            file.add(image_folder, "images")
    assert load_dataset("auto", archive)[0].digest == load_dataset("auto", image_folder)[0].digest


def test_an_archive_with_two_copies_of_the_images_is_refused(image_folder, tmp_path):
    archive = tmp_path / "cifar10.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for root in "cifar10", "cifar10 copy":
            for path in sorted(image_folder.rglob("*.png")):
                file.write(path, f"{root}/{path.relative_to(image_folder)}")
    more = r"has the images more than once: cifar10/test/airplane/0000.png and cifar10 copy/test/airplane/0000.png"
    with pytest.raises(DataError, match=more):
        load_dataset("auto", archive)


def test_a_zip_with_backslashes_is_read(image_folder, tmp_path):
    archive = tmp_path / "cifar10.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(image_folder.rglob("*.png")):
            member = zipfile.ZipInfo("x")
            member.filename = str(path.relative_to(image_folder)).replace("/", "\\")
            file.writestr(member, path.read_bytes())
    assert load_dataset("auto", archive)[0].digest == load_dataset("auto", image_folder)[0].digest


def many_members(archive):
    with tarfile.open(archive, "w") as file:
        for index in range(30):
            file.addfile(tarfile.TarInfo(f"train/cat/{index}.txt"))


def long_header(archive):
    member = tarfile.TarInfo("train/cat/0.png")
    member.pax_headers = {"comment": "x" * 3000}
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(member)


def huge_members(archive):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for index in range(3):
            file.writestr(f"train/cat/{index}.txt", bytes(5000))


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (many_members, "cifar10.tar", "has more than 20 files, or 0 GiB"),
        (long_header, "cifar10.tar", r"is truncated, damaged or unreadable \(a header of 3,\d+ bytes\)"),
        (huge_members, "cifar10.zip", "has more than 20 files, or 0 GiB"),
    ],
)
def test_archives_have_limits(tmp_path, monkeypatch, make, name, message):
    for limit, value in {"MOST_MEMBERS": 20, "MOST_HEADER_BYTES": 2000, "MOST_BYTES": 12_000}.items():
        monkeypatch.setattr(archives, limit, value)
    make(tmp_path / name)
    with pytest.raises(DataError, match=message):
        load_dataset("auto", tmp_path / name)


def cut_short(folder, archive):
    data = pack(folder, archive).read_bytes()
    archive.write_bytes(data[: len(data) // 2])


def no_archive(folder, archive):
    archive.write_bytes(b"hello" * 100)


def no_class(folder, archive):
    shutil.rmtree(folder / "train" / "cat")


def other_class(folder, archive):
    (folder / "train" / "cat").rename(folder / "train" / "lion")


def no_split(folder, archive):
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()


def wrong_size(folder, archive):
    Image.new("RGB", (28, 28)).save(folder / "test" / "dog" / "0001.png")


def no_image(folder, archive):
    (folder / "test" / "dog" / "0001.png").write_text("not a picture")


def half_image(folder, archive):
    file = folder / "test" / "dog" / "0001.png"
    file.write_bytes(file.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "suffix", "message"),
    [
        (cut_short, "tar.gz", "is truncated, damaged or unreadable"),
        (cut_short, "zip", "is truncated, damaged or unreadable"),
        (no_archive, "tar.gz", "is truncated, damaged or unreadable"),
        (no_archive, "zip", "is truncated, damaged or unreadable"),
        (no_class, None, "train/ has no images of cat"),
        (other_class, None, "train/lion is not a class of CIFAR-10; expected airplane"),
        (no_split, None, "the split test/ has no images"),
        (wrong_size, None, "test/dog/0001.png is 28x28, not 32x32"),
        (no_image, None, "test/dog/0001.png is not a readable image"),
        (half_image, None, "test/dog/0001.png is not a readable image"),
    ],
)
def test_damaged_image_files_are_named_in_one_line(image_folder, workplace, damage, suffix, message):
    place = image_folder if suffix is None else image_folder.parent / f"cifar10.{suffix}"
    damage(image_folder, place)
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", place)
    assert message in str(caught.value)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(workplace.glob("data/cache/*"))
    assert not leftovers(workplace)

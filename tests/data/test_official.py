import io
import os
import pickle
import shutil
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import write_images
from packing import leftovers, noise, pack, write_official
from PIL import Image

from cifar_lab.data.cache import load_dataset
from cifar_lab.data.catalogue import CIFAR10, CIFAR100, ENTRIES
from cifar_lab.data.selection import select
from cifar_lab.errors import DataError
from cifar_lab.sections import DataConfig

pytestmark = pytest.mark.usefixtures("workplace")


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


@pytest.fixture
def small_official(tmp_path, monkeypatch):
    """CIFAR-10 with 100 + 10 images."""
    images, labels = {"train": noise(100), "test": noise(10)}, {"train": [*range(10)] * 10, "test": [*range(10)]}
    return write_official(tmp_path / "source", monkeypatch, "cifar10", images, labels)


@pytest.mark.parametrize("form", ["archive", "folder", "renamed", "zip", "flat zip"])
def test_official_files_are_known_in_any_folder_or_archive(small_official, tmp_path, form):
    folder = small_official.parent / CIFAR10.folder
    if form == "archive":
        place = small_official
    elif form == "folder":
        place = folder.parent
    elif form == "renamed":
        place = folder.rename(tmp_path / "anything")
    else:
        place = tmp_path / "archive.zip"
        with zipfile.ZipFile(place, "w") as file:
            for path in folder.iterdir():
                file.write(path, path.name if form == "flat zip" else f"cifar/{path.name}")
    dataset, _ = load_dataset("auto", place)
    assert (dataset.name, dataset.title) == ("cifar10", "CIFAR-10 (original pixels)")
    label_of = {image.tobytes(): index % 10 for index, image in enumerate(noise(100))}
    assert [label_of[image.tobytes()] for image in dataset.images["train"]] == dataset.labels["train"].tolist()


def test_cifar100_is_labelled_in_the_order_of_its_superclasses(tmp_path, monkeypatch):
    images, labels = {"train": noise(200), "test": noise(100)}, {"train": [*range(100)] * 2, "test": [*range(100)]}
    archive = write_official(tmp_path / "source", monkeypatch, "cifar100", images, labels)
    dataset, _ = load_dataset("auto", archive)
    assert (dataset.name, dataset.title) == ("cifar100", "CIFAR-100 (original pixels)")
    label_of = {image.tobytes(): index % 100 for index, image in enumerate(images["train"])}
    assert [label_of[image.tobytes()] for image in dataset.images["train"]] == dataset.labels["train"].tolist()
    assert list(dataset.superclasses) == sorted(dataset.superclasses, key=dataset.superclasses.index)
    coarse = select(dataset, DataConfig(labels="coarse"))
    title = "CIFAR-100 (original pixels), superclasses"
    assert (coarse.name, coarse.title, len(coarse.classes)) == ("cifar100-coarse", title, 20)
    expected = [CIFAR100.superclasses[label] for label in dataset.labels["train"]]
    assert [coarse.classes[label] for label in coarse.labels["train"]] == expected
    trees = select(dataset, DataConfig(classes=("oak_tree", "girl")))
    assert (trees.classes, trees.superclasses) == (("girl", "oak_tree"), ("people", "trees"))


def test_the_same_pixels_are_the_same_data_set_however_they_are_packed(tmp_path, monkeypatch):
    """As official batches, and as PNG files in a folder, a tar and a zip: one digest, which is the catalogue's."""
    folder, pixels, labels = write_images(tmp_path / "images", (3, 2)), {}, {}
    for split in "train", "test":
        files = sorted((folder / split).rglob("*.png"), key=lambda file: file.name)  # classes mixed, as officially
        pixels[split] = np.stack([np.asarray(Image.open(file)) for file in files])
        labels[split] = [CIFAR10.classes.index(file.parent.name) for file in files]
    archive = write_official(tmp_path / "source", monkeypatch, "cifar10", pixels, labels)
    batches, _ = load_dataset("auto", archive)
    packed = [pack(folder, tmp_path / name) for name in ("a.tar.xz", "cifar10.zip")]
    assert load_dataset("auto", folder)[0].title == "CIFAR-10 (PNG copy)"
    monkeypatch.setitem(ENTRIES, "cifar10", replace(ENTRIES["cifar10"], digest=batches.digest))
    shutil.rmtree("data")
    for place in (folder, *packed):
        again, _ = load_dataset("auto", place)
        assert (again.name, again.title, again.digest) == (batches.name, batches.title, batches.digest)
        for split in "train", "test":
            assert (again.images[split] == batches.images[split]).all()
            assert (again.labels[split] == batches.labels[split]).all()
    file = folder / "test" / "dog" / "0001.png"
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    assert load_dataset("auto", folder)[0].name == "cifar10-png"


def test_nothing_unverified_is_unpickled(small_official, workplace):
    folder = small_official.parent / CIFAR10.folder
    (folder / "data_batch_1").write_bytes(pickle.dumps(Exploit()))
    for place in folder, pack(folder, small_official):
        with pytest.raises(DataError, match=r"not the official CIFAR-10: the MD5 of .*data_batch_1 is another one"):
            load_dataset("auto", place)
    (folder / "data_batch_1").unlink()
    with pytest.raises(DataError, match="not the official CIFAR-10: it has no data_batch_1"):
        load_dataset("auto", folder)
    assert not (workplace / "exploited").exists()
    assert not leftovers(workplace)


def test_truncated_official_archive_is_refused(small_official):
    small_official.write_bytes(small_official.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"is truncated, damaged or unreadable|the MD5 of .* is another one"):
        load_dataset("auto", small_official)


HOSTILE = [
    ("../../test/dog/0.png", {}),
    ("{outside}/test/dog/0.png", {}),
    ("test/dog/0.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    ("test/dog/0.png", {"type": tarfile.LNKTYPE, "linkname": "../../secret"}),
]


@pytest.mark.parametrize(("name", "kind"), HOSTILE)
@pytest.mark.parametrize("archive", ["cifar10.tar", "cifar10.zip", CIFAR10.archive])
def test_hostile_archives_are_refused_and_write_nothing(workplace, tmp_path, archive, name, kind):
    name = name.format(outside=tmp_path / "harm")
    path = workplace / "given" / archive
    path.parent.mkdir()
    if path.suffix == ".zip":
        member = zipfile.ZipInfo(name)
        member.external_attr = (0o120777 if kind else 0o100644) << 16
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(member, "/etc/passwd")
    else:
        member = tarfile.TarInfo(name)
        member.size = 0 if kind else 4
        for key, value in kind.items():
            setattr(member, key, value)
        with tarfile.open(path, "w") as file:
            file.addfile(member, io.BytesIO(b"harm"))
    with pytest.raises(DataError, match="is a link or leads out of the archive, which is refused"):
        load_dataset("cifar10", path)
    written = [file for file in workplace.rglob("*") if file.is_file() and file.name != ".lock"]
    assert written == [path]
    assert not (tmp_path / "harm").exists()

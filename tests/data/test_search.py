import json
import os
import shutil

import pytest
from conftest import write_images
from packing import noise, pack, write_official
from PIL import Image

from cifar_lab.data.cache import load_dataset
from cifar_lab.data.catalogue import CIFAR10, CIFAR100
from cifar_lab.data.selection import select
from cifar_lab.errors import DataError, UsageError
from cifar_lab.sections import DataConfig

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.mark.parametrize("name", ["cifar10.tar", "cifar-10-batches-py", "train"])
def test_what_is_no_file_is_not_waited_for(workplace, name):
    (workplace / "data").mkdir()
    os.mkfifo(workplace / "data" / name)
    (workplace / "data" / "archive.zip").write_text("")
    with pytest.raises(DataError, match=f"passed over: data/archive.zip, data/{name}; put it there"):
        load_dataset("cifar10")
    with pytest.raises(DataError, match="no CIFAR-10 in"):
        load_dataset("cifar10", workplace / "data" / name)


def test_places_are_searched_in_order(workplace):
    write_images(workplace.parent / "shared" / "data", (1, 1), "jpg")
    assert load_dataset("auto")[0].name == "cifar10-jpeg"
    write_images(workplace / "data" / "any name", (1, 1), "png")
    assert load_dataset("auto")[0].name == "cifar10-png"
    assert load_dataset("auto", workplace.parent / "shared" / "data")[0].name == "cifar10-jpeg"


@pytest.mark.parametrize("form", ["cifar10-{}.tar.gz", "cifar10-{}.zip", "{}"])
def test_of_several_copies_one_that_lost_nothing_is_taken(workplace, tmp_path, form):
    for suffix in "jpg", "png":  # the first by its name is the worse
        write_images(tmp_path / suffix, (1, 1), suffix)
        target = workplace / "data" / form.format(suffix)
        target.parent.mkdir(exist_ok=True)
        pack(tmp_path / suffix, target) if target.suffix else shutil.copytree(tmp_path / suffix, target)
    assert load_dataset("auto")[0].name == "cifar10-png"
    for path in (workplace / "data").glob("*png*"):
        path.rename(workplace / path.name)
    write_images(workplace.parent / "shared" / "data" / "any name", (1, 1), "png")
    assert load_dataset("auto")[0].name == "cifar10-png"


def test_images_of_your_own_in_data_are_not_taken_for_cifar10(workplace):
    write_images(workplace / "data" / "pets", (2, 2), classes=("cat", "dog"))
    assert load_dataset("auto")[0].name == "digits"
    assert load_dataset("auto", workplace / "data" / "pets")[0].name == "pets"


def test_cifar10_and_cifar100_lie_side_by_side(workplace):
    for entry in CIFAR10, CIFAR100:
        write_images(workplace.parent / entry.name, (1, 1), classes=entry.classes)
    (workplace / "data").mkdir()
    pack(workplace.parent / "cifar100", workplace / "data" / "cifar-100.zip")
    assert load_dataset("cifar100")[0].name == "cifar100-png"
    with pytest.raises(DataError, match="CIFAR-10 is not in data/"):
        load_dataset("cifar10")
    (workplace.parent / "cifar10").rename(workplace / "data" / "a")
    (workplace.parent / "cifar100").rename(workplace / "data" / "b")
    for entry in CIFAR10, CIFAR100:
        dataset, _ = load_dataset(entry.name)
        assert (dataset.title, len(dataset.classes)) == (f"{entry.title} (PNG copy)", len(entry.classes))
    assert load_dataset("auto", workplace / "data" / "b")[0].name == "cifar100-png"
    with pytest.raises(DataError, match=r"data/b: test/\w+ is not a class of CIFAR-10; expected"):
        load_dataset("cifar10", workplace / "data" / "b")
    with pytest.raises(UsageError, match=r"CIFAR-10 \(PNG copy\) has no superclasses"):
        select(load_dataset("cifar10")[0], DataConfig(labels="coarse"))


AT_HOME = {
    "Keras 2": (".keras/datasets/cifar-10-batches-py.tar.gz", True),
    "Keras 3": (".keras/datasets/cifar-10-batches-py-target/cifar-10-batches-py", False),
    "unpacked": (".keras/datasets/cifar-10-batches-py", False),
    "torchvision": ("data/cifar-10-python.tar.gz", True),
    "cached": (".cache/cifar-10-python.tar.gz", True),
}


@pytest.mark.parametrize("place", AT_HOME)
def test_what_other_programs_have_at_home_is_used(tmp_path, monkeypatch, place):
    images, labels = {"train": noise(20), "test": noise(10)}, {"train": [*range(10)] * 2, "test": [*range(10)]}
    archive = write_official(tmp_path / "source", monkeypatch, "cifar10", images, labels)
    name, packed = AT_HOME[place]
    target = tmp_path / "home" / name
    target.parent.mkdir(parents=True)
    shutil.move(archive if packed else archive.parent / CIFAR10.folder, target)
    dataset, _ = load_dataset("cifar10")
    assert (dataset.name, dataset.title) == ("cifar10", "CIFAR-10 (original pixels)")


@pytest.mark.parametrize(("entry", "label"), [(CIFAR10, "label"), (CIFAR100, "fine_label")])
@pytest.mark.parametrize("described", [True, False])
def test_hugging_face_s_parquet_files_are_used(tmp_path, entry, label, described):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = (
        tmp_path / "home" / ".cache/huggingface/hub" / f"datasets--uoft-cs--{entry.name}" / "snapshots/abc/plain_text"
    )
    folder.mkdir(parents=True)
    names = sorted(entry.classes)
    images = write_images(tmp_path / "images", (1, 1), classes=entry.classes)
    for split in "train", "test":
        encoded = [(images / split / name / "0000.png").read_bytes() for name in names]
        columns = {"img": [{"bytes": image, "path": None} for image in encoded], label: [*range(len(names))]}
        features = json.dumps({"info": {"features": {label: {"names": names}}}})
        table = arrow.table(columns).replace_schema_metadata({"huggingface": features} if described else None)
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    found, _ = load_dataset(entry.name)
    files, _ = load_dataset(entry.name, images)
    assert (found.name, found.digest, found.superclasses) == (files.name, files.digest, files.superclasses)
    with pytest.raises(DataError, match="is not in data/"):
        load_dataset("cifar100" if entry is CIFAR10 else "cifar10")
    (folder / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="as Parquet"):
        load_dataset(entry.name)


def test_of_kaggle_s_competition_the_training_half_is_read(workplace, tmp_path):
    folder = tmp_path / "competition"
    (folder / "train").mkdir(parents=True)
    pixels = noise(100)
    for number, image in enumerate(pixels, 1):
        Image.fromarray(image).save(folder / "train" / f"{number}.png")
    rows = [f"{number},{CIFAR10.classes[number % 10]}" for number in range(1, 101)]
    (folder / "trainLabels.csv").write_text("\n".join(["id,label", *rows]))
    dataset, _ = load_dataset("auto", folder)
    assert (dataset.name, dataset.title) == ("cifar10-kaggle", "CIFAR-10 (Kaggle's training images only)")
    assert "the test set of Kaggle's competition has no labels" in dataset.note
    assert [len(dataset.labels[split]) for split in ("train", "test")] == [80, 20]
    label_of = {image.tobytes(): number % 10 for number, image in enumerate(pixels, 1)}
    assert [label_of[image.tobytes()] for image in dataset.images["test"]] == dataset.labels["test"].tolist()
    (folder / "train" / "7.png").unlink()
    with pytest.raises(DataError, match="is not what Kaggle's CIFAR-10 competition gives"):
        load_dataset("auto", folder)


def test_a_place_without_images_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"no images in .*: expected cifar-10-python.tar.gz"):
        load_dataset("auto", tmp_path)
    with pytest.raises(DataError, match=r"no CIFAR-10 in .*: expected cifar-10-python.tar.gz"):
        load_dataset("cifar10", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("auto", tmp_path / "nowhere")

import shutil

import numpy as np
import pytest
from conftest import write_images
from packing import noise, pack
from PIL import Image

from cifar_lab.commands.predict import read_image
from cifar_lab.data.cache import load_dataset
from cifar_lab.data.catalogue import CIFAR10
from cifar_lab.data.selection import select
from cifar_lab.errors import DataError, UsageError
from cifar_lab.sections import DataConfig

pytestmark = pytest.mark.usefixtures("workplace")
PETS = ("cat", "dog", "guinea pig")


@pytest.fixture
def pets(tmp_path):
    return write_images(tmp_path / "pets", (10, 5), classes=PETS)


def as_set(dataset):
    return {
        (split, dataset.classes[label], image.tobytes())
        for split in dataset.images
        for image, label in zip(dataset.images[split], dataset.labels[split], strict=True)
    }


def test_a_folder_of_your_own_is_a_data_set_named_after_it(pets):
    dataset, fallback_reason = load_dataset("auto", pets)
    assert (dataset.name, dataset.title, dataset.classes) == ("pets", "pets (images of your own)", PETS)
    assert (dataset.note, fallback_reason) == ("", "")
    assert [len(dataset.labels[split]) for split in ("train", "test")] == [30, 15]
    files = {(file.parts[-3], file.parts[-2], np.asarray(Image.open(file)).tobytes()) for file in pets.rglob("*.png")}
    assert as_set(dataset) == files
    named, _ = load_dataset("auto", pets, "mine")
    assert (named.name, named.digest) == ("mine", dataset.digest)
    with pytest.raises(DataError, match="is not a class of CIFAR-10"):
        load_dataset("cifar10", pets)
    assert load_dataset("auto", pets.rename(pets.parent / "our pets"))[0].name == "our-pets"


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar.gz", "pets.tar.xz"])
def test_archives_of_your_own_have_the_same_content(pets, tmp_path, name):
    (tmp_path / "top").mkdir()
    shutil.copytree(pets, tmp_path / "top" / "nested" / "pets")
    archive = pack(tmp_path / "top", tmp_path / name)
    dataset, _ = load_dataset("auto", archive)
    assert (dataset.name, dataset.digest) == ("pets", load_dataset("auto", pets)[0].digest)


def test_images_of_any_size_are_brought_to_32_pixels_as_predict_does(pets):
    shutil.rmtree(pets / "test" / "dog")
    (pets / "test" / "dog").mkdir()
    gradient = np.linspace(0, 255, 300 * 200).reshape(200, 300).astype(np.uint8)
    for suffix in "jpg", "png", "webp", "bmp", "gif", "tiff", "JPEG":
        Image.fromarray(gradient).save(pets / "test" / "dog" / f"large.{suffix}")
    dataset, _ = load_dataset("auto", pets)
    assert dataset.note == "7 images were not 32x32: their middle square is scaled, as predict does"
    dogs = {pixels for split, name, pixels in as_set(dataset) if (split, name) == ("test", "dog")}
    assert dogs == {read_image(file).tobytes() for file in (pets / "test" / "dog").iterdir()}


@pytest.mark.parametrize("layout", ["train", "classes alone"])
def test_without_test_images_a_stratified_fifth_is_held_out_for_good(pets, layout, tmp_path):
    shutil.rmtree(pets / "test")
    place = pets if layout == "train" else (pets / "train").rename(tmp_path / "flat")
    dataset, _ = load_dataset("auto", place)
    assert dataset.note == "there is no test split: 6 images, a fifth of each class, are held out for it"
    assert np.bincount(dataset.labels["train"]).tolist() == [8, 8, 8]
    assert np.bincount(dataset.labels["test"]).tolist() == [2, 2, 2]
    for number, file in enumerate(sorted(place.rglob("*.png"))):  # other names, the same content
        file.rename(file.with_name(f"{999 - number}.png"))
    assert as_set(load_dataset("auto", place)[0]) == as_set(dataset)


def test_validation_images_join_the_training_images(pets):
    before, _ = load_dataset("auto", pets)
    (pets / "val" / "dog").mkdir(parents=True)
    for file in sorted((pets / "train" / "dog").iterdir())[:4]:
        file.rename(pets / "val" / "dog" / file.name)
    assert load_dataset("auto", pets)[0].digest == before.digest


def test_photos_in_a_format_that_can_t_be_read_are_counted(pets, tmp_path, capsys):
    flat = (pets / "train").rename(tmp_path / "flat")
    (flat / "cat" / "1.HEIC").write_bytes(b"x")
    (flat / "LICENSE.txt").write_bytes(b"x")
    load_dataset("auto", flat)
    assert f"{flat}: left out, because no image of a class: cat/1.HEIC (1 in all)\n" in capsys.readouterr().err


def test_litter_links_and_odd_names_are_read_or_left_out(pets, capsys):
    before, _ = load_dataset("auto", pets)
    for litter in "__MACOSX/train/cat/._0001.png", "train/dog/._0001.png", ".DS_Store", "train/cat/Thumbs.db", "a.txt":
        (pets / litter).parent.mkdir(parents=True, exist_ok=True)
        (pets / litter).write_bytes(b"x")
    (pets / "train" / "loop").symlink_to(pets)
    elsewhere = (pets / "test" / "dog").rename(pets.parent / "elsewhere")
    (pets / "test" / "dog").symlink_to(elsewhere)
    file = (pets / "train" / "cat" / "0001.png").rename(pets.parent / "other.png")
    (pets / "train" / "cat" / "0001.PNG").symlink_to(file)
    capsys.readouterr()
    assert load_dataset("auto", pets)[0].digest == before.digest
    assert "left out" not in capsys.readouterr().err


def two_cases(pets):
    (pets / "train" / "Dog").mkdir()
    shutil.copy(pets / "train" / "dog" / "0000.png", pets / "train" / "Dog")


def one_class(pets):
    for split in "train", "test":
        for name in PETS[1:]:
            shutil.rmtree(pets / split / name)


def class_missing(pets):
    shutil.rmtree(pets / "test" / "dog")


def control_character(pets):
    (pets / "train" / "dog").rename(pets / "train" / "d\nog")


def one_image(pets):
    shutil.rmtree(pets / "test")
    for file in sorted((pets / "train" / "dog").iterdir())[1:]:
        file.unlink()


def broken_image(pets):
    (pets / "train" / "cat" / "0000.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (two_cases, "the classes Dog and dog differ only in case; rename or merge them"),
        (one_class, "the number of classes is 1, not 2 to 1,000"),
        (class_missing, "test/ has no images of dog"),
        (control_character, r"the class 'd\\nog' has a name that can't be written in a line"),
        (one_image, "no fifth of each class can be held out for the test"),
        (broken_image, "train/cat/0000.png is not a readable image"),
    ],
)
def test_what_can_t_be_used_is_refused_in_one_line(pets, change, message):
    change(pets)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("auto", pets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "digits-2", "a/b", "a b", "x" * 100, "-x"])
def test_a_name_that_won_t_do_is_refused(pets, name):
    refusal = r"can't be the name of images of your own, in .*; give one with --data-name"
    with pytest.raises(UsageError, match=refusal):
        load_dataset("auto", pets, name)
    with pytest.raises(UsageError, match=refusal):
        load_dataset("auto", pets.rename(pets.parent / "(pets)"))


def test_a_name_needs_images_of_your_own(pets):
    for data, place in ("auto", None), ("cifar10", pets):
        with pytest.raises(UsageError, match="--data-name names images of your own"):
            load_dataset(data, place, "x")


def test_cifar10_s_classes_in_another_size_are_your_own_if_named(tmp_path):
    folder = write_images(tmp_path / "large", (2, 2))
    for file in folder.rglob("*.png"):
        Image.open(file).resize((64, 64)).save(file)
    with pytest.raises(DataError, match="is 64x64, not 32x32"):
        load_dataset("auto", folder)
    with pytest.raises(DataError, match="is not 32x32; --data-name makes it a data set of your own"):
        load_dataset("auto", pack(folder, tmp_path / "large.tar.gz"))
    assert load_dataset("auto", folder, "large")[0].classes == CIFAR10.classes


def test_more_than_256_classes_have_wider_labels(tmp_path):
    names = [f"c{index:03}" for index in range(300)]
    arrays = {"x_train": noise(600), "y_train": [*range(300)] * 2, "x_test": noise(300), "y_test": [*range(300)]}
    np.savez(tmp_path / "many.npz", **arrays)
    dataset, _ = load_dataset("auto", tmp_path / "many.npz")
    assert dataset.labels["train"].dtype == np.uint16
    label_of = {image.tobytes(): index % 300 for index, image in enumerate(arrays["x_train"])}
    assert [label_of[image.tobytes()] for image in dataset.images["train"]] == [
        int(dataset.classes[label]) for label in dataset.labels["train"]
    ]
    assert select(dataset, DataConfig(classes=("7", "299"))).labels["test"].dtype == np.uint8
    folder = write_images(tmp_path / "many", (1, 1), classes=names)
    assert load_dataset("auto", folder)[0].labels["test"].max() == 299


KERAS = {"x_train": noise(40), "y_train": [0, 1] * 20, "x_test": noise(20), "y_test": [0, 1] * 10}
MEDMNIST = {
    "train_images": noise(30)[:, :28, :28, 0],
    "train_labels": np.array([0, 3] * 15)[:, None],
    "val_images": noise(10)[:, :28, :28, 0],
    "val_labels": np.array([0, 3] * 5)[:, None],
    "test_images": noise(20)[:, :28, :28, 0],
    "test_labels": np.array([0, 3] * 10)[:, None],
}


def test_arrays_are_read_as_keras_and_medmnist_keep_them(tmp_path):
    np.savez(tmp_path / "keras.npz", **KERAS)
    dataset, _ = load_dataset("auto", tmp_path / "keras.npz")
    assert (dataset.name, dataset.classes, dataset.note) == ("keras", ("0", "1"), "")
    assert {image.tobytes() for image in dataset.images["train"]} == {image.tobytes() for image in KERAS["x_train"]}
    np.savez_compressed(tmp_path / "med.npz", **MEDMNIST)
    dataset, _ = load_dataset("auto", tmp_path / "med.npz")
    assert (dataset.name, dataset.classes) == ("med", ("0", "3"))
    assert [len(dataset.labels[split]) for split in ("train", "test")] == [40, 20]  # validation images join training
    assert dataset.note == "the images were 28x28: their middle square is scaled, as predict does"
    Image.fromarray(MEDMNIST["test_images"][0]).save(tmp_path / "first.png")
    assert read_image(tmp_path / "first.png").tobytes() in {image.tobytes() for image in dataset.images["test"]}
    np.savez(tmp_path / "part.npz", **{key: KERAS[key] for key in ("x_train", "y_train")})
    assert "8 images, a fifth of each class, are held out" in load_dataset("auto", tmp_path / "part.npz")[0].note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": noise(40).astype(float)}, r"train images are \(40, 32, 32, 3\) float64, not"),
        ({"x_train": np.zeros((40, 300, 4, 3), np.uint8)}, r"train images are \(40, 300, 4, 3\) uint8, not"),
        ({"x_test": np.zeros((0, 32, 32), np.uint8)}, r"test images are \(0, 32, 32\) uint8, not"),
        ({"x_test": np.zeros(20, np.uint8)}, r"test images are \(20,\) uint8, not"),
        ({"x_train": np.zeros((40, 28, 28, 28), np.uint8)}, r"train images are \(40, 28, 28, 28\) uint8, not"),
        ({"y_train": np.zeros((40, 14), int)}, r"train labels are \(40, 14\) int64, not a whole number for each"),
        ({"y_test": [0, 1] * 9}, r"test labels are \(18,\) int64, not a whole number for each of 20 images"),
        ({"y_train": np.array([0, "x"] * 20, object)}, r"can't be read as arrays \(Object arrays cannot be loaded"),
        ({"y_train": None}, "can't be read as arrays"),
        ({"x_train": None, "y_train": None}, "has none of train_images, train_labels and x_train, y_train"),
    ],
)
def test_arrays_that_can_t_be_used_are_refused_in_one_line(tmp_path, change, message):
    arrays = {key: value for key, value in {**KERAS, **change}.items() if value is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("auto", tmp_path / "x.npz")
    assert "\n" not in str(caught.value)


def test_a_damaged_array_file_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **KERAS)
    content = (tmp_path / "x.npz").read_bytes()
    for damaged in content[: len(content) // 2], b"", b"hello", content[:1000] + b"x" + content[1001:]:
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="can't be read as arrays"):
            load_dataset("auto", tmp_path / "x.npz")

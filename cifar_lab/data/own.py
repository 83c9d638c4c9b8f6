"""Images of your own: any classes, from a folder, an archive or arrays; and the training half of Kaggle's CIFAR-10."""

import csv
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_lab.data import archives, imagefiles
from cifar_lab.data.catalogue import CIFAR10, ENTRIES, SPLITS
from cifar_lab.data.content import content_order
from cifar_lab.data.sources import Images, Source, label_type, progress
from cifar_lab.errors import DataError, UsageError, first_line

MOST_CLASSES, LARGEST_SIDE = 1000, 256
TEST_SHARE = 0.2  # held out where there are no test images
NAME = re.compile(r"\w[\w.-]{0,59}")
ARRAYS = ("{}_images", "{}_labels"), ("x_{}", "y_{}")  # of MedMNIST and of Keras
SCALED = "their middle square is scaled, as predict does"
KAGGLE = "trainLabels.csv"


def own_source(path: Path, name: str | None) -> Source:
    """The images at `path`, called `name` or as the folder or file is. Raises UsageError for a name that won't do.

    A copy of a catalogue entry, found in a tar that could not be looked into before, keeps its name if none is given.
    """
    there = re.sub(r"\s+", "-", path.resolve().name)
    called = name or (re.sub(r"(\.tar)?\.\w+$", "", there) if path.is_file() else there)
    if not NAME.fullmatch(called) or called.startswith((*ENTRIES, "digits")):
        raise UsageError(f"{called!r} can't be the name of images of your own, in {path}; give one with --data-name")

    def decode() -> Images:
        if path.suffix.lower() == ".npz":
            return _arrays(path, called)
        found = imagefiles.read_images(path)
        for entry in ENTRIES.values():
            if not name and found.classes == {*entry.classes}:
                return imagefiles.copy_of(entry, found, path)
        return _own(path, called, found)

    return Source(str(path), lambda: f"own {name} {called} {archives.place_digest(path)}", decode)


def _own(path: Path, name: str, found: imagefiles.Found) -> Images:
    if not found.pixels:
        raise DataError(f"no images in {path}: expected {CIFAR10.archive}, <split>/<class>/*, <class>/* or an .npz")
    classes = tuple(sorted(found.classes))
    images, labels = imagefiles.split_arrays(found, classes)
    images, labels = ({split or "train": part[split] for split in part} for part in (images, labels))
    sizes = f"{len(found.fitted):,} images were not 32x32: {SCALED}" if found.fitted else ""
    return _images(path, name, classes, images, labels, sizes)


def _images(
    path: Path,
    name: str,
    classes: tuple[str, ...],
    images: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    note: str,
) -> Images:
    _check(path, classes)
    if "train" not in images:
        raise DataError(f"{path}: the split train/ has no images")
    notes = [note] if note else []
    if "test" not in images:
        order = content_order(images["train"], labels["train"])
        images, labels = hold_out(path, images["train"][order], labels["train"][order])
        notes.append(
            f"there is no test split: {len(labels['test']):,} images, a fifth of each class, are held out for it"
        )
    for split in SPLITS:
        if empty := sorted({*range(len(classes))} - {*labels[split].tolist()}):
            raise DataError(f"{path}: {split}/ has no images of {', '.join(classes[i] for i in empty[:5])}")
    return Images(name, f"{name} (images of your own)", classes, images, labels, note="; ".join(notes))


def hold_out(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images and labels by split: a stratified fifth for the test, by a constant seed. Raises DataError if too few."""
    from sklearn.model_selection import train_test_split

    try:
        parts = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=0)
    except ValueError as error:
        raise DataError(f"{path}: no fifth of each class can be held out for the test ({error})") from None
    by_split = dict(zip(SPLITS, parts, strict=True))
    return (
        {split: images[part] for split, part in by_split.items()},
        {s: labels[part] for s, part in by_split.items()},
    )


def _check(path: Path, classes: Sequence[str]) -> None:
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(f"{path}: the number of classes is {len(classes):,}, not 2 to {MOST_CLASSES:,}")
    if odd := [name for name in classes if not name.isprintable()]:
        raise DataError(f"{path}: the class {odd[0]!r} has a name that can't be written in a line")
    by_letters: dict[str, str] = {}
    for name in classes:
        other = by_letters.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"{path}: the classes {other} and {name} differ only in case; rename or merge them")


def _arrays(path: Path, name: str) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = next((keys for keys in ARRAYS if keys[0].format("train") in file), None)
            if keys is None:
                raise DataError(f"{path} has none of train_images, train_labels and x_train, y_train, but {file.files}")
            splits = [split for split in ("train", "val", "test") if keys[0].format(split) in file]
            parts = {split: [file[key.format(split)] for key in keys] for split in splits}
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise DataError(f"{path} can't be read as arrays ({first_line(error)})") from None
    for split, (images, labels) in parts.items():
        _check_arrays(f"{path}: {split}", images, labels)
    numbers = np.unique(np.concatenate([labels.ravel() for _, labels in parts.values()]))
    classes = tuple(map(str, numbers.tolist()))
    images, labels, side = {}, {}, parts["train"][0].shape[1:3]
    for split, where in (("train", ["train", "val"]), ("test", ["test"])):
        there = [parts[part] for part in where if part in parts]
        if there:
            images[split] = np.stack([_fitted(image) for part, _ in there for image in progress(part, "resizing")])
            found = np.concatenate([part.ravel() for _, part in there])
            labels[split] = np.searchsorted(numbers, found).astype(label_type(len(classes)))
    sizes = "" if side == (32, 32) else f"the images were {side[1]}x{side[0]}: {SCALED}"
    return _images(path, name, classes, images, labels, sizes)


def _check_arrays(place: str, images: np.ndarray, labels: np.ndarray) -> None:
    found = f"{images.shape} {images.dtype}"
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not fits or not images.size or max(images.shape[1:3]) > LARGEST_SIDE:
        wanted = f"(n, height, width[, 1 or 3]) uint8 up to {LARGEST_SIDE} pixels"
        raise DataError(f"{place} images are {found}, not {wanted}")
    if labels.dtype.kind not in "iu" or labels.size != len(images) or len(labels) != len(images):
        found, wanted = f"{labels.shape} {labels.dtype}", f"a whole number for each of {len(images):,} images"
        raise DataError(f"{place} labels are {found}, not {wanted}")


def _fitted(image: np.ndarray) -> np.ndarray:
    """(32, 32, 3) uint8 of (height, width), (height, width, 1) or (height, width, 3) uint8."""
    grey = image[..., 0] if image.shape[2:] == (1,) else image
    return imagefiles.fit(Image.fromarray(grey).convert("RGB"))


def is_kaggle(path: Path) -> bool:
    """Whether `path` has the unpacked files of Kaggle's CIFAR-10 competition."""
    return (path / KAGGLE).is_file() and (path / "train").is_dir()


def kaggle_source(path: Path) -> Source:
    """The training images of Kaggle's CIFAR-10 competition; those of its test set have no labels."""
    return Source(str(path), lambda: f"kaggle {archives.place_digest(path / 'train')}", lambda: _kaggle(path))


def _kaggle(path: Path) -> Images:
    found = imagefiles.Found()
    try:
        with (path / KAGGLE).open(newline="") as file:
            rows = [(row["id"], row["label"]) for row in csv.DictReader(file)]
        for number, label in progress(rows, "decoding"):
            image = path / "train" / f"{number}.png"
            kind, pixels, _ = imagefiles.decode(image.read_bytes, image.stat().st_size, str(image), small=True)
            found.kinds.add(kind)
            found.pixels["train", label, number] = pixels
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not what Kaggle's CIFAR-10 competition gives ({first_line(error)})") from None
    if found.classes != {*CIFAR10.classes}:
        raise DataError(f"{path}: the classes in {KAGGLE} are not those of CIFAR-10")
    images, labels = imagefiles.split_arrays(found, CIFAR10.classes)
    order = content_order(images["train"], labels["train"])
    parts = hold_out(path, images["train"][order], labels["train"][order])
    note = "the test set of Kaggle's competition has no labels: a fifth of each class of the training images stands in"
    return Images("cifar10-kaggle", "CIFAR-10 (Kaggle's training images only)", CIFAR10.classes, *parts, note=note)

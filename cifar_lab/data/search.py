"""Where images come from: the places that are searched, the download, the stand-in."""

import hashlib
from pathlib import Path

import numpy as np

from cifar_lab.data import imagefiles, official
from cifar_lab.data.catalogue import CIFAR10, ENTRIES, SPLITS, Entry
from cifar_lab.data.sources import DATA, Images, Source
from cifar_lab.errors import DataError, Unreachable, printable

PLACES = (DATA, Path("../shared/data"))
SHOWN = 5  # of what was passed over


def find_source(data: str, data_dir: Path | None) -> Source:
    """The source that `--data` and `--data-dir` mean; it is downloaded if it is nowhere on disk.

    data: "auto" (CIFAR-10, or the stand-in digits where it can't be had), the name of a catalogue entry, or "digits".
    Raises DataError.
    """
    if data == "digits":
        return _digits("")
    entry = CIFAR10 if data == "auto" else ENTRIES[data]
    if data_dir is not None:
        if not data_dir.exists():
            raise DataError(f"data directory {data_dir} does not exist")
        if found := _recognise(data_dir, entry):
            return found
        formats = f"{entry.archive}, {entry.folder}/, <split>/<class>/*.png|jpg or an archive of such"
        raise DataError(f"no {entry.title} in {data_dir}: expected {formats}")
    for place in PLACES:
        if found := _recognise(place, entry):
            return found
    try:
        return official.official_archive(official.download(entry), entry)
    except Unreachable as error:
        reason = f"{entry.title} is not in {' or '.join(f'{place}/' for place in PLACES)} and {error}"
        if others := _passed_over():
            reason = f"{reason}; what is there was passed over: {', '.join(others)}"
        if data == "auto":
            return _digits(reason)
        raise DataError(f"{reason}; put it there or give --data-dir") from None


def _recognise(path: Path, entry: Entry) -> Source | None:
    """The data set of `entry` at `path` itself or directly below it, the original before copies."""
    if path.is_file():
        official_name = path.name == entry.archive
        return official.official_archive(path, entry) if official_name else imagefiles.image_archive(path, entry)
    if path.name == entry.folder and path.is_dir():
        return official.official_folder(path, entry)
    if (path / entry.archive).is_file():
        return official.official_archive(path / entry.archive, entry)
    if (path / entry.folder).is_dir():
        return official.official_folder(path / entry.folder, entry)
    below = sorted(path.iterdir()) if path.is_dir() else []
    for folder in [path, *below]:
        if any((folder / split / name).is_dir() for split in SPLITS for name in entry.classes):
            return imagefiles.image_folder(folder, entry)
    for file in filter(Path.is_file, below):
        name, others = file.name.lower().replace("-", "").replace("_", ""), ENTRIES.keys() - {entry.name}
        longer = any(name.startswith(other) for other in others if other.startswith(entry.name))  # cifar100, cifar10
        if name.startswith(entry.name) and not longer and name.endswith((*imagefiles.TARS, ".zip")):
            return imagefiles.image_archive(file, entry)
    return None


def _passed_over() -> list[str]:
    """Some of what lies where images are looked for."""
    found = [path for place in PLACES if place.is_dir() for path in sorted(place.iterdir())]
    return [printable(str(path)) for path in found if not (path.name.startswith(".") or path == DATA / "cache")][:SHOWN]


def _digits(because: str) -> Source:
    def decode() -> Images:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        small = np.round(digits.images * (255 / 16)).astype(np.uint8)
        images = np.repeat(small.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
        parts = train_test_split(
            images, digits.target.astype(np.uint8), test_size=0.2, stratify=digits.target, random_state=0
        )
        names = tuple(str(digit) for digit in range(10))
        return Images(
            "digits",
            "scikit-learn digits",
            names,
            dict(zip(SPLITS, parts[:2], strict=True)),
            dict(zip(SPLITS, parts[2:], strict=True)),
        )

    return Source("scikit-learn", lambda: hashlib.sha256(b"digits 1").hexdigest(), decode, because)

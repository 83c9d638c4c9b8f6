"""Where images come from: the places that are searched, the download, the stand-in."""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from cifar_lab.data import archives, imagefiles, official, own, parquet
from cifar_lab.data.catalogue import ENTRIES, SPLITS, Entry
from cifar_lab.data.download import download
from cifar_lab.data.sources import DATA, Images, Source
from cifar_lab.errors import DataError, Unreachable, UsageError, printable

PLACES = (DATA, Path("../shared/data"))
HOME = Path("~")
NAMES = ("auto", *ENTRIES, "digits")
SHOWN = 5  # of what was passed over
ORIGINAL, LOSSLESS, LOSSY, PART = range(4)  # of several the first kind is taken
Candidate = tuple[int, Source]  # its kind


def find_source(data: str, data_dir: Path | None, name: str | None = None) -> Source:
    """The source that `--data`, `--data-dir` and `--data-name` mean; it is downloaded if it is nowhere on disk.

    data: "auto" (CIFAR-10, or the stand-in digits where it can't be had; with `data_dir` whatever that holds, images of
    your own too), the name of a catalogue entry, or "digits". Raises DataError, UsageError for a name that won't do.
    """
    if data not in NAMES:
        raise UsageError(f"no data set {data!r}; use {', '.join(NAMES)}")
    if name and (data != "auto" or data_dir is None):
        raise UsageError("--data-name names images of your own: give --data-dir with it, and no --data")
    if data == "digits":
        return _digits("")
    if data_dir is not None:
        return _given(data, data_dir, name)
    entry = ENTRIES["cifar10" if data == "auto" else data]
    if found := _best(chain(*(_candidates(place, entry) for place in PLACES), _at_home(entry))):
        return found
    try:
        return official.source(download(entry), entry)
    except Unreachable as error:
        reason = f"{entry.title} is not in {' or '.join(f'{place}/' for place in PLACES)} and {error}"
        if others := _passed_over():
            reason = f"{reason}; what is there was passed over: {', '.join(others)}"
        if data == "auto":
            return _digits(reason)
        raise DataError(f"{reason}; put it there or give --data-dir") from None


def _given(data: str, path: Path, name: str | None) -> Source:
    if not path.exists():
        raise DataError(f"data directory {path} does not exist")
    entries = list(ENTRIES.values()) if data == "auto" else [ENTRIES[data]]
    for entry in entries if not name else ():
        if found := _best(_candidates(path, entry)):
            return found
    if data == "auto" and (path.is_dir() or archives.is_archive(path) or path.suffix.lower() == ".npz"):
        return own.own_source(path, name)
    if data != "auto" and (archives.is_archive(path) or imagefiles.seen(path)[0]):
        return imagefiles.copy_source(path, entries[0])  # which says what is wrong with it
    formats = " or ".join(f"{entry.archive}, {entry.folder}/" for entry in entries)
    images = "<split>/<class>/*.png|jpg or an archive of such" + (", an .npz of arrays" if data == "auto" else "")
    raise DataError(f"no {entries[0].title} in {path}: expected {formats}, {images}")


def _best(candidates: Iterable[Candidate]) -> Source | None:
    """The first of the best kind; the rest is not looked at once the original is found."""
    best = None
    for candidate in candidates:
        if best is None or candidate[0] < best[0]:
            best = candidate
        if best[0] == ORIGINAL:
            break
    return best[1] if best else None


def _candidates(place: Path, entry: Entry) -> Iterator[Candidate]:
    """What looks like `entry` at `place` itself or directly below it."""
    below = sorted(place.iterdir()) if place.is_dir() else []
    for path in [place, *(path for path in below if not path.name.startswith("."))]:
        if candidate := _candidate(path, entry):
            yield candidate


def _candidate(path: Path, entry: Entry) -> Candidate | None:
    if official.holds(path, entry):
        return ORIGINAL, official.source(path, entry)
    if parquet.holds(path, entry):
        return LOSSLESS, parquet.source(path, entry)
    classes, suffix = imagefiles.seen(path)
    named = re.match(f"cifar[-_]?{entry.name[5:]}(?!0)", path.name.lower()) and archives.is_archive(path)
    if classes == {*entry.classes} or (named and classes <= {*entry.classes}):  # of a tar the first files are seen
        return LOSSLESS if suffix in imagefiles.LOSSLESS else LOSSY, imagefiles.copy_source(path, entry)
    if own.is_kaggle(path) and entry.name == "cifar10":
        return PART, own.kaggle_source(path)
    return None


def _at_home(entry: Entry) -> Iterator[Candidate]:
    """What Keras, torchvision and Hugging Face have left in the home folder."""
    home, given = HOME.expanduser(), os.environ.get
    cache = home / ".cache"
    keras = Path(given("KERAS_HOME") or home / ".keras") / "datasets"
    hub = Path(given("HF_HUB_CACHE") or Path(given("HF_HOME") or cache / "huggingface") / "hub")
    for place in (keras, cache, cache / "torch" / "datasets", home / "data", home / "datasets"):
        below = sorted(place.glob(f"{entry.folder}*"))  # Keras adds -target, _archive and .tar.gz
        for path in (place / entry.archive, *below, *(path / entry.folder for path in below)):
            if official.holds(path, entry):
                yield ORIGINAL, official.source(path, entry)
    for repository in (f"datasets--uoft-cs--{entry.name}", f"datasets--{entry.name}"):
        for path in sorted(hub.glob(f"{repository}/snapshots/*"), key=os.path.getmtime, reverse=True):
            if parquet.holds(path, entry):
                yield LOSSLESS, parquet.source(path, entry)


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

    return Source("scikit-learn", lambda: "digits 1", decode, because)

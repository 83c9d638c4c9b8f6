"""Other images to test on: corruptions computed here, and the published files of CIFAR-10-C and CIFAR-10.1."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_lab.data.cache import Dataset
from cifar_lab.data.catalogue import CIFAR10
from cifar_lab.data.corruptions import COMPUTED, NAMES, STRENGTHS, corrupt
from cifar_lab.data.sources import DATA
from cifar_lab.errors import DataError, UsageError, first_line
from cifar_lab.files import atomic_write

FORMAT = 1  # of the cached corruptions: raise it when corrupt() gives other pixels
LABELS, NEWER = "labels.npy", "cifar10.1_v6_{}.npy"


@dataclass(frozen=True)
class Others:
    """Images to test on, by name and strength.

    load(name) gives (strengths, n, 32, 32, 3) uint8 images and (n,) labels; it raises DataError and OSError.
    """

    key: str  # begins the names of metrics
    title: str
    names: tuple[str, ...]
    complete: bool  # whether these are all names, so that their mean can be quoted
    load: Callable[[str], tuple[np.ndarray, np.ndarray]]

    @property
    def corrupted(self) -> bool:
        """Whether these are corruptions with strengths, not a single set of images called `key`."""
        return self.names != (self.key,)


def find_others(data: str, dataset: Dataset, names: Sequence[str] = ()) -> Others:
    """What `--data` means: "corruptions" of the test images of `dataset`, or a folder with published files.

    names: of corruptions, by default all. Raises UsageError and DataError, before anything is computed.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise UsageError(f"no corruption {unknown[0]!r}; use {', '.join(NAMES)}")
    names = tuple(dict.fromkeys(names))
    if data == "corruptions":
        return _computed(dataset, names or COMPUTED)
    folder = Path(data)
    newer, labels = folder / NEWER.format("data"), folder / LABELS
    if not (newer.is_file() or labels.is_file()):
        raise DataError(
            f"no {newer.name} (CIFAR-10.1) and no {LABELS} (CIFAR-10-C) in {data}; give such a folder, or corruptions"
        )
    if dataset.classes != CIFAR10.classes:
        raise UsageError(f"{data} has the ten classes of CIFAR-10, but these runs know {dataset.title}")
    if newer.is_file():
        if names:
            raise UsageError(f"{data} is CIFAR-10.1, which has no corruptions to choose from")
        return _published("cifar10.1", f"CIFAR-10.1 v6, the files in {data}", newer, folder / NEWER.format("labels"))
    return _published("cifar10-c", f"CIFAR-10-C, the published files in {data}", folder, labels, names or NAMES)


def _computed(dataset: Dataset, names: Sequence[str]) -> Others:
    if "frost" in names:
        raise UsageError("frost is not computed here: it needs photographs of frost; CIFAR-10-C's own files have it")
    images, labels = dataset.images["test"], dataset.labels["test"]
    digest = hashlib.sha256(f"{FORMAT} {images.shape}".encode() + np.ascontiguousarray(images).tobytes()).hexdigest()
    folder = DATA / "cache" / "corruptions" / digest[:16]

    def load(name: str) -> tuple[np.ndarray, np.ndarray]:
        path = folder / f"{name}.npz"
        with suppress(Exception), np.load(path, allow_pickle=False) as cached:  # of zip and numpy; checks its CRC
            if (found := cached["images"]).shape == (STRENGTHS, *images.shape):
                return found, labels
        corrupted = np.stack([corrupt(images, name, strength) for strength in range(1, STRENGTHS + 1)])
        with atomic_write(path) as target, target.open("wb") as file:
            np.savez(file, allow_pickle=False, images=corrupted)
        return corrupted, labels

    title = "corruptions computed here from the test images, not the published CIFAR-10-C files"
    return Others("corruptions", title, tuple(names), set(names) == set(COMPUTED), load)


def _published(key: str, title: str, place: Path, labels: Path, names: Sequence[str] = ()) -> Others:
    """Files of arrays: `place` itself, or one for each of `names` in it, with all strengths one after the other."""
    files = {name: place / f"{name}.npy" for name in names} or {key: place}
    strengths = STRENGTHS if names else 1
    numbers = _array(labels, "labels 0 to 9", lambda array: array.ndim == 1 and 0 <= array.min() <= array.max() <= 9)
    shape = (len(numbers), 32, 32, 3)
    for file in files.values():
        _array(file, f"{shape}, uint8", lambda array: (array.shape, array.dtype) == (shape, np.uint8))
    block, rest = divmod(len(numbers), strengths)
    if rest or (numbers.reshape(strengths, block) != numbers[:block]).any():
        raise DataError(f"{labels}: the {len(numbers)} labels are not {strengths} times the same ones")

    def load(name: str) -> tuple[np.ndarray, np.ndarray]:
        images = np.array(np.load(files[name], mmap_mode="r", allow_pickle=False))
        return images.reshape(strengths, block, 32, 32, 3), np.array(numbers[:block])

    return Others(key, title, tuple(files), not names or set(names) == set(NAMES), load)


def _array(file: Path, expected: str, fits: Callable[[np.ndarray], bool]) -> np.ndarray:
    """An integer array, not read into memory. Raises DataError if it is missing or not as expected."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{file} is missing") from None
    except Exception as error:  # numpy's reader has many
        raise DataError(f"{file} is not a readable .npy ({first_line(error)})") from None
    if not (array.size and fits(array) and array.dtype.kind in "ui"):
        raise DataError(f"{file} has shape {array.shape}, {array.dtype}: expected {expected}")
    return array

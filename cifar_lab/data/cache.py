"""A data set as uint8 arrays in memory: found, decoded once, kept in a cache, opened at once."""

import hashlib
import json
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock

from cifar_lab.data.catalogue import SPLITS
from cifar_lab.data.search import find_source
from cifar_lab.data.sources import DATA, Images, Source
from cifar_lab.errors import DataError
from cifar_lab.files import atomic_write

KINDS = ("images", "labels")


@dataclass(frozen=True)
class Dataset:
    """Images (n, 32, 32, 3) uint8 RGB and labels (n,) uint8 of the official train and test split.

    `mean` and `std` are per channel, of the training pixels scaled to [0, 1].
    """

    name: str
    title: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str  # of pixels, labels and class names: the same however they were packed
    folder: Path
    images: dict[str, np.ndarray] = field(repr=False)
    labels: dict[str, np.ndarray] = field(repr=False)
    superclasses: tuple[str, ...] = ()  # of each class, where there are any


def load_dataset(data: str = "auto", data_dir: Path | None = None) -> tuple[Dataset, str]:
    """The data set, and why it is a stand-in ("" if it is not). Decodes into `data/cache/` what is not there yet.

    Raises DataError for what is wrong with the images, OSError for what is wrong with the disk.
    """
    source = find_source(data, data_dir)
    return decoded(source), source.fallback_reason


def decoded(source: Source) -> Dataset:
    """The data set of a source, from the cache if it is there. Raises DataError and OSError."""
    folder = DATA / "cache" / source.digest()[:16]
    with suppress(DataError):
        return open_dataset(folder)
    DATA.mkdir(exist_ok=True)
    with FileLock(DATA / ".lock"):
        with suppress(DataError):  # another process was here meanwhile
            return open_dataset(folder)
        if folder.exists():
            print(f"the decoded images in {folder} are damaged; decoding them anew", file=sys.stderr)
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        _write(source.decode(), folder)
    return open_dataset(folder)


def find_cached(digest: str) -> Dataset | None:
    """The data set in `data/cache/` whose digest begins with `digest`, if it is there and not damaged."""
    for meta in sorted((DATA / "cache").glob("*/meta.json")):
        with suppress(DataError, ValueError, KeyError, TypeError, OSError):
            if json.loads(meta.read_text())["digest"].startswith(digest):
                return open_dataset(meta.parent)
    return None


def open_dataset(folder: Path) -> Dataset:
    """The data set in a cache folder, read and verified: what happens to the files afterwards changes nothing.

    Raises DataError.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        seal = meta.pop("meta_digest", None)
        arrays = {f"{kind}_{split}": np.load(folder / f"{kind}_{split}.npy") for kind in KINDS for split in SPLITS}
        dataset = Dataset(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in meta.items()},
            folder=folder,
            images={split: arrays[f"images_{split}"] for split in SPLITS},
            labels={split: arrays[f"labels_{split}"] for split in SPLITS},
        )
        if _digest(dataset.classes, dataset.images, dataset.labels) != dataset.digest or _meta_digest(meta) != seal:
            raise ValueError("their digest is another one")
    except FileNotFoundError:
        raise DataError(f"the decoded images in {folder} are gone; start again to decode them anew") from None
    except Exception as error:  # of json and of numpy's reader, which has many
        raise DataError(f"the decoded images in {folder} are damaged ({error}); start again") from None
    return dataset


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, scaled to [0, 1]."""
    pixels = images.reshape(-1, 3)
    counts = np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]) / len(pixels)
    values = np.arange(256) / 255
    mean = counts @ values
    return tuple(mean.tolist()), tuple(np.sqrt(counts @ values**2 - mean**2).tolist())


def _write(source: Images, folder: Path) -> None:
    mean, std = channel_statistics(source.images["train"])
    meta = {
        "name": source.name,
        "title": source.title,
        "classes": source.classes,
        "mean": mean,
        "std": std,
        "digest": _digest(source.classes, source.images, source.labels),
        "superclasses": source.superclasses,
    }
    with atomic_write(folder) as path:
        path.mkdir()
        for split in SPLITS:
            np.save(path / f"images_{split}.npy", np.ascontiguousarray(source.images[split]))
            np.save(path / f"labels_{split}.npy", source.labels[split])
        (path / "meta.json").write_text(json.dumps({**meta, "meta_digest": _meta_digest(meta)}))


def _meta_digest(meta: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _digest(classes: tuple[str, ...], images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in SPLITS:
        digest.update(np.ascontiguousarray(images[split]))
        digest.update(np.ascontiguousarray(labels[split]))
    return digest.hexdigest()

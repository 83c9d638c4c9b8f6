"""A data set as uint8 arrays in memory: found, decoded once, kept in a cache, opened at once."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from cifar_lab.data.catalogue import ENTRIES, SPLITS
from cifar_lab.data.content import content_digest, content_order
from cifar_lab.data.search import find_source
from cifar_lab.data.sources import DATA, Images, Source
from cifar_lab.errors import DataError
from cifar_lab.files import atomic_write

FORMAT = 2  # of the cache: images in the order of their content
KINDS = ("images", "labels")


@dataclass(frozen=True)
class Dataset:
    """Images (n, 32, 32, 3) uint8 RGB and labels (n,), uint8 up to 256 classes, then uint16, of both splits.

    Both are in the order of their content. `mean` and `std` are per channel, of the training pixels scaled to [0, 1].
    """

    name: str
    title: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str  # see content_digest: the same however they were packed
    folder: Path
    images: dict[str, np.ndarray] = field(repr=False)
    labels: dict[str, np.ndarray] = field(repr=False)
    superclasses: tuple[str, ...] = ()  # of each class, where there are any
    note: str = ""  # what was done to the images, if anything

    @property
    def variables(self) -> str:
        """What make has to be given to find it again, after a space; of CIFAR-10 and its copies nothing."""
        found = next((name for name in ("cifar10", "cifar100", "digits") if re.match(f"{name}(-|$)", self.name)), None)
        if found == "cifar10":
            return ""
        return f" DATA={found}" if found else f" DATA_DIR=<the images of {self.name}>"


def load_dataset(data: str = "auto", data_dir: Path | None = None, name: str | None = None) -> tuple[Dataset, str]:
    """The data set that find_source finds, decoded if it is not in the cache; and why it is a stand-in, or "".

    Raises DataError for what is wrong with the images, OSError for what is wrong with the disk.
    """
    source = find_source(data, data_dir, name)
    return decoded(source), source.fallback_reason


def decoded(source: Source) -> Dataset:
    """The data set of a source, from the cache if it is there. Raises DataError and OSError."""
    key = hashlib.sha256(f"{FORMAT} {source.digest()}".encode()).hexdigest()
    folder = DATA / "cache" / key[:16]
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
        described: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in meta.items()}
        dataset = Dataset(
            **described,
            folder=folder,
            images={split: arrays[f"images_{split}"] for split in SPLITS},
            labels={split: arrays[f"labels_{split}"] for split in SPLITS},
        )
        if (
            content_digest(dataset.classes, dataset.images, dataset.labels) != dataset.digest
            or _meta_digest(meta) != seal
        ):
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


def _write(found: Images, folder: Path) -> None:
    images, labels = {}, {}
    for split in SPLITS:
        order = content_order(found.images[split], found.labels[split])
        images[split], labels[split] = found.images[split][order], found.labels[split][order]
    digest = content_digest(found.classes, images, labels)
    original = next((entry for entry in ENTRIES.values() if entry.digest == digest), None)
    mean, std = channel_statistics(images["train"])
    meta = {
        "name": original.name if original else found.name,
        "title": original.original_title if original else found.title,
        "classes": found.classes,
        "mean": mean,
        "std": std,
        "digest": digest,
        "superclasses": found.superclasses,
        "note": found.note,
    }
    with atomic_write(folder) as path:
        path.mkdir()
        for split in SPLITS:
            np.save(path / f"images_{split}.npy", images[split])
            np.save(path / f"labels_{split}.npy", labels[split])
        (path / "meta.json").write_text(json.dumps({**meta, "meta_digest": _meta_digest(meta)}))


def _meta_digest(meta: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()

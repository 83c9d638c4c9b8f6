"""A data set as uint8 arrays in memory: found, decoded once, kept in a cache, opened at once."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from cifar_lab import imagefiles, official
from cifar_lab.config import UsageError
from cifar_lab.sources import DATA, SPLITS, DataError, Images, Source, Unreachable, staged

PLACES = (DATA, Path("../shared/data"))
LONGEST_NAME = 30  # of classes, in that of their MLflow experiment


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


def load_dataset(data: str = "auto", data_dir: Path | None = None) -> tuple[Dataset, str]:
    """The data set, and why it is a stand-in ("" if it is not). Decodes into `data/cache/` what is not there yet.

    Raises DataError for what is wrong with the images, OSError for what is wrong with the disk.
    """
    source = find_source(data, data_dir)
    return decoded(source), source.stand_in_because


def decoded(source: Source) -> Dataset:
    """The data set of a source, from the cache if it is there. Raises DataError and OSError."""
    folder = DATA / "cache" / source.digest()[:16]
    if not folder.is_dir():
        DATA.mkdir(exist_ok=True)
        with FileLock(DATA / ".lock"):
            if not folder.is_dir():
                _write(source.decode(), folder)
    return _verified(folder)


def _verified(folder: Path) -> Dataset:
    dataset = open_dataset(folder)
    if _digest(dataset.classes, dataset.images, dataset.labels) != dataset.digest:
        raise DataError(f"the cache {folder} is damaged; delete it and start again")
    return dataset


def find_cached(digest: str) -> Dataset | None:
    """The data set in `data/cache/` whose digest begins with `digest`. Raises DataError if it is damaged."""
    for meta in sorted((DATA / "cache").glob("*/meta.json")):
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            if json.loads(meta.read_text())["digest"].startswith(digest):
                return _verified(meta.parent)
    return None


def open_dataset(folder: Path) -> Dataset:
    """The data set in a cache folder, memory-mapped. Raises DataError."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        arrays = {
            f"{kind}_{split}": np.load(folder / f"{kind}_{split}.npy", mmap_mode="c")
            for kind in ("images", "labels")
            for split in SPLITS
        }
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"the cache {folder} is damaged ({error}); delete it and start again") from None
    return Dataset(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in meta.items()},
        folder=folder,
        images={split: arrays[f"images_{split}"] for split in SPLITS},
        labels={split: arrays[f"labels_{split}"] for split in SPLITS},
    )


def select_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """The images of `classes` alone, a data set with a name of its own; `dataset` itself if none are named.

    Labels count the chosen classes in the order of the data set; `digest` stays that of the images chosen from.
    Raises UsageError for a class that is not there.
    """
    if not classes:
        return dataset
    if unknown := sorted(set(classes) - set(dataset.classes)):
        known = ", ".join(dataset.classes)
        raise UsageError(f"data.classes: {dataset.title} has no class {', '.join(unknown)}; it has: {known}")
    chosen = tuple(name for name in dataset.classes if name in classes)
    numbers = np.array([dataset.classes.index(name) for name in chosen], np.uint8)
    kept = {split: np.isin(labels, numbers) for split, labels in dataset.labels.items()}
    images = {split: dataset.images[split][kept[split]] for split in SPLITS}
    labels = {split: np.searchsorted(numbers, dataset.labels[split][kept[split]]).astype(np.uint8) for split in SPLITS}
    suffix = "-".join(chosen).replace(" ", "_")
    if len(suffix) > LONGEST_NAME:
        suffix = f"{len(chosen)}-classes-{hashlib.sha256(suffix.encode()).hexdigest()[:6]}"
    mean, std = _channel_statistics(images["train"])
    title = f"{dataset.title}, only {', '.join(chosen) if len(chosen) < 4 else f'{len(chosen)} classes'}"
    return replace(
        dataset,
        name=f"{dataset.name}-{suffix}",
        title=title,
        classes=chosen,
        mean=mean,
        std=std,
        images=images,
        labels=labels,
    )


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, scaled to [0, 1]."""
    pixels = images.reshape(-1, 3)
    counts = np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]) / len(pixels)
    values = np.arange(256) / 255
    mean = counts @ values
    return tuple(mean.tolist()), tuple(np.sqrt(counts @ values**2 - mean**2).tolist())


def _write(source: Images, folder: Path) -> None:
    mean, std = _channel_statistics(source.images["train"])
    meta = {
        "name": source.name,
        "title": source.title,
        "classes": source.classes,
        "mean": mean,
        "std": std,
        "digest": _digest(source.classes, source.images, source.labels),
    }
    with staged(folder) as path:
        path.mkdir()
        for split in SPLITS:
            np.save(path / f"images_{split}.npy", np.ascontiguousarray(source.images[split]))
            np.save(path / f"labels_{split}.npy", source.labels[split])
        (path / "meta.json").write_text(json.dumps(meta))


def _digest(classes: tuple[str, ...], images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in SPLITS:
        digest.update(np.ascontiguousarray(images[split]))
        digest.update(np.ascontiguousarray(labels[split]))
    return digest.hexdigest()


def find_source(data: str, data_dir: Path | None) -> Source:
    """The source that `--data` and `--data-dir` mean; CIFAR-10 is downloaded if it is nowhere on disk.

    data: "auto" (the stand-in digits where CIFAR-10 can't be had), "cifar10" (fails there) or "digits".
    Raises DataError.
    """
    if data == "digits":
        return _digits("")
    if data_dir is not None:
        if not data_dir.exists():
            raise DataError(f"data directory {data_dir} does not exist")
        if found := _recognise(data_dir):
            return found
        formats = f"{official.ARCHIVE}, {official.FOLDER}/, <split>/<class>/*.png|jpg or an archive of such"
        raise DataError(f"no CIFAR-10 in {data_dir}: expected {formats}")
    for place in PLACES:
        if found := _recognise(place):
            return found
    try:
        return official.official_archive(official.download())
    except Unreachable as error:
        reason = f"CIFAR-10 is not in {' or '.join(f'{place}/' for place in PLACES)} and {error}"
        if data == "auto":
            return _digits(reason)
        raise DataError(f"{reason}; put it there or give --data-dir") from None


def _recognise(path: Path) -> Source | None:
    """CIFAR-10 at `path` itself or directly below it, the original before copies."""
    if path.is_file():
        return official.official_archive(path) if path.name == official.ARCHIVE else imagefiles.image_archive(path)
    if path.name == official.FOLDER:
        return official.official_folder(path)
    if (path / official.ARCHIVE).is_file():
        return official.official_archive(path / official.ARCHIVE)
    if (path / official.FOLDER).is_dir():
        return official.official_folder(path / official.FOLDER)
    below = sorted(path.iterdir()) if path.is_dir() else []
    for folder in [path, *below]:
        if any((folder / split).is_dir() for split in SPLITS):
            return imagefiles.image_folder(folder)
    for file in below:
        name = file.name.lower().replace("-", "").replace("_", "")
        if name.startswith("cifar10") and not name.startswith("cifar100") and name.endswith((*imagefiles.TARS, ".zip")):
            return imagefiles.image_archive(file)
    return None


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

    return Source(lambda: hashlib.sha256(b"digits 1").hexdigest(), decode, because)

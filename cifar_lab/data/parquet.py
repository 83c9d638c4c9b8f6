"""CIFAR-10 and CIFAR-100 as Hugging Face keeps them: Parquet files with encoded images."""

import functools
import itertools
import json
from pathlib import Path

import numpy as np

from cifar_lab.data import imagefiles
from cifar_lab.data.catalogue import SPLITS, Entry
from cifar_lab.data.imagefiles import Found
from cifar_lab.data.sources import Images, Source, progress
from cifar_lab.errors import DataError, first_line
from cifar_lab.files import file_digest

IMAGES = ("img", "image")
LABELS = {"cifar10": "label", "cifar100": "fine_label"}
BATCH = 1000


def files(path: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split, in `path` or in a folder directly below it."""
    found = sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")]) if path.is_dir() else []
    return {split: [file for file in found if file.name.startswith((f"{split}-", f"{split}."))] for split in SPLITS}


def holds(path: Path, entry: Entry) -> bool:
    """Whether `path` has both splits of `entry`, to judge by the columns and class names of the files."""
    found = files(path)
    if not all(found.values()):
        return False
    from pyarrow import ArrowException, parquet

    try:
        schema = parquet.read_schema(found["train"][0])
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get(LABELS[entry.name], {}).get("names")
    except (ArrowException, OSError, ValueError, AttributeError):
        return False
    known = names == sorted(entry.classes) if names else IMAGES[0] in schema.names
    return known and LABELS[entry.name] in schema.names and any(name in schema.names for name in IMAGES)


def source(path: Path, entry: Entry) -> Source:
    """The Parquet files at `path`. Decoding them raises DataError."""
    found = files(path)

    def digest() -> str:
        return f"{entry.name} {' '.join(map(file_digest, itertools.chain(*found.values())))}"

    return Source(str(path), digest, lambda: _decode(path, found, entry))


def _decode(path: Path, found: dict[str, list[Path]], entry: Entry) -> Images:
    from pyarrow import ArrowException, parquet

    classes, images = sorted(entry.classes), Found()
    try:
        for split, file in progress([(part, file) for part in SPLITS for file in found[part]], "decoding"):
            opened = parquet.ParquetFile(file)
            column = next(name for name in IMAGES if name in opened.schema_arrow.names)
            rows = 0
            for batch in opened.iter_batches(BATCH, columns=[column, LABELS[entry.name]]):
                encoded, labels = batch.columns
                for image, label in zip(encoded.to_pylist(), np.asarray(labels).tolist(), strict=True):
                    name = f"{path}: row {rows} of {file.name}"
                    kind, pixels, _ = imagefiles.decode(functools.partial(image.get, "bytes"), 0, name, small=True)
                    images.kinds.add(kind)
                    images.pixels[split, classes[label], f"{file.name} {rows}"] = pixels
                    rows += 1
    except (ArrowException, OSError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"{path} is damaged or not {entry.title} as Parquet ({first_line(error)})") from None
    return imagefiles.copy_of(entry, images, path)

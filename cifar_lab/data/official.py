"""The original files, in any folder, tar or zip: recognised by their MD5, and nothing else is unpickled."""

import hashlib
import pickle
from itertools import islice
from pathlib import Path

import numpy as np

from cifar_lab.data import archives
from cifar_lab.data.catalogue import SPLITS, Entry
from cifar_lab.data.sources import Images, Source, label_type
from cifar_lab.errors import DataError, first_line
from cifar_lab.files import file_digest

LABELS = ("labels", "fine_labels")
META = ("batches.meta", "meta")  # names of the classes: the labels count them in alphabetical order


def holds(path: Path, entry: Entry) -> bool:
    """Whether `path` has the official files of `entry`, to judge by their names; reading them checks their MD5."""
    if path.is_dir():
        return path.name == entry.folder or all((path / name).is_file() for name in entry.files)
    if not path.is_file():
        return False
    if path.suffix.lower() == ".zip":
        return entry.files.keys() <= {name.rpartition("/")[2] for name in archives.names(path)}
    return path.name == entry.archive or (archives.is_archive(path) and _begins_with(path, entry))


def _begins_with(path: Path, entry: Entry) -> bool:
    try:
        first = islice(archives.members(path), archives.FIRST)
        return any(name.rpartition("/")[2] in entry.files for name, *_ in first)
    except (DataError, *archives.DAMAGED):
        return False


def source(path: Path, entry: Entry) -> Source:
    """The official files at `path`. Decoding them raises DataError if they are not what they should be."""

    def digest() -> str:
        if path.is_file():
            return f"official {entry.name} {file_digest(path)}"
        files = [path / name for name in entry.files if (path / name).is_file()]
        return f"official {entry.name} {' '.join(map(file_digest, files))}"

    return Source(str(path), digest, lambda: _decode(path, entry))


def _decode(path: Path, entry: Entry) -> Images:
    contents, wanted = {}, entry.files.keys() - META
    try:
        for name, size, read in archives.members(path, "reading"):
            file = name.rpartition("/")[2]
            if file in wanted and file not in contents and 0 <= size <= archives.MOST_FILE_BYTES:
                content = read()
                if hashlib.md5(content, usedforsecurity=False).hexdigest() != entry.files[file]:
                    raise DataError(f"{path} is not the official {entry.title}: the MD5 of {name} is another one")
                contents[file] = pickle.loads(content, encoding="latin1")
    except archives.DAMAGED as error:
        raise DataError(f"{path} is truncated, damaged or unreadable ({first_line(error)})") from None
    if missing := sorted(wanted - contents.keys()):
        raise DataError(f"{path} is not the official {entry.title}: it has no {', '.join(missing)}")
    label_of = np.array([entry.classes.index(name) for name in sorted(entry.classes)], label_type(len(entry.classes)))
    images, labels = {}, {}
    for split in SPLITS:
        batches = [contents[file] for file in sorted(wanted) if file.startswith("test") == (split == "test")]
        pixels = np.concatenate([batch["data"] for batch in batches])
        images[split] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        numbers = [batch[key] for batch in batches for key in LABELS if key in batch]
        labels[split] = label_of[np.concatenate(numbers)]
    return Images(entry.name, entry.original_title, entry.classes, images, labels, entry.superclasses)

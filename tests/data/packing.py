"""Data sets in the forms in which the world has them, small."""

import hashlib
import pickle
import tarfile
import zipfile
from dataclasses import replace

import numpy as np

from cifar_lab.data.catalogue import ENTRIES


def pack(folder, archive):
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                file.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:xz" if archive.suffix == ".xz" else "w:gz") as file:
            file.add(folder, folder.name)
    return archive


def leftovers(workplace):
    """Everything under data/ but the lock and finished caches."""
    return [str(path) for path in workplace.glob("data/**/*") if path.name.startswith(".") and path.name != ".lock"]


def noise(n, seed=0):
    """(n, 32, 32, 3) uint8."""
    return np.random.default_rng(seed + n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def write_official(folder, monkeypatch, name, images, labels):
    """The official files of a catalogue entry, which gets their MD5; labels count its classes. Returns the archive."""
    entry = ENTRIES[name]
    folder = folder / entry.folder
    folder.mkdir(parents=True)
    alphabetical = sorted(entry.classes)
    labels = {split: [alphabetical.index(entry.classes[i]) for i in labels[split]] for split in labels}
    flat = {split: images[split].transpose(0, 3, 1, 2).reshape(-1, 3072) for split in images}
    kind = "labels" if name == "cifar10" else "fine_labels"
    train = [file for file in entry.files if file.startswith(("data_batch", "train"))]
    files = {}
    for file in entry.files:
        split, part = ("train", train.index(file)) if file in train else ("test", 0)
        step = len(train) if split == "train" else 1
        content = {"data": flat[split][part::step], kind: labels[split][part::step]}
        (folder / file).write_bytes(pickle.dumps({} if "meta" in file else content))
        files[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    archive = pack(folder, folder.parent / entry.archive)
    packed = archive.read_bytes()
    changed = {"files": files, "size": len(packed), "md5": hashlib.md5(packed).hexdigest()}
    monkeypatch.setitem(ENTRIES, name, replace(entry, **changed))
    return archive

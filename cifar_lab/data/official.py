"""The original files: download, verify, read through torchvision; nothing unverified is unpickled."""

import hashlib
import http.client
import socket
import tarfile
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from threading import Thread

import numpy as np

from cifar_lab.data.catalogue import SPLITS, Entry
from cifar_lab.data.sources import DATA, Images, Source, open_with_progress, progress
from cifar_lab.errors import DataError, Unreachable
from cifar_lab.files import atomic_write, file_digest

PIECE = 1 << 20
CONNECT_SECONDS = 10


def _reader(entry: Entry) -> type:
    """torchvision's class, which knows address and checksums."""
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[entry.name]


def download(entry: Entry) -> Path:
    """Fetch the official archive into data/. Raises Unreachable, or DataError for a bad checksum."""
    reader, archive = _reader(entry), DATA / entry.archive
    host = urllib.parse.urlparse(reader.url).hostname
    try:
        if not urllib.request.getproxies():
            _resolve(host)
        response = urllib.request.urlopen(reader.url, timeout=CONNECT_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        raise Unreachable(f"can't be downloaded from {host} ({getattr(cause, 'strerror', None) or cause})") from None
    size = int(response.headers.get("Content-Length", entry.size))
    with response, atomic_write(archive) as path, path.open("wb") as file:
        for _ in progress(range(-(-size // PIECE)), f"downloading {entry.archive}"):
            try:
                piece = response.read(PIECE)
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"the download from {host} broke off ({error})") from None
            file.write(piece)
        if file.tell() < size:
            raise Unreachable(f"the download from {host} broke off after {file.tell():,} of {size:,} bytes")
        file.flush()
        _verify(path, reader.tgz_md5, f"the download from {host}")
    return archive


def _resolve(host: str) -> None:
    """Raise OSError if `host` has no address within CONNECT_SECONDS: a resolver's own limit can be minutes."""
    outcome: list[OSError | None] = []

    def look_up() -> None:
        try:
            socket.getaddrinfo(host, None)
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not outcome:
        raise TimeoutError(f"no address for {host} within {CONNECT_SECONDS} s")
    if outcome[0]:
        raise outcome[0]


def _verify(path: Path, md5: str, name: str) -> None:
    if file_digest(path, "md5") != md5:
        raise DataError(
            f"{name} is truncated or not the official file (its MD5 is not {md5}); delete it and fetch it again"
        )


def official_archive(path: Path, entry: Entry) -> Source:
    def decode() -> Images:
        _verify(path, _reader(entry).tgz_md5, str(path))
        with tempfile.TemporaryDirectory(dir=DATA) as folder:
            with open_with_progress(path, "unpacking") as file, tarfile.open(fileobj=file) as archive:
                archive.extractall(folder, filter="data")
            return _read_official(Path(folder) / entry.folder, entry, str(path))

    return Source(str(path), lambda: file_digest(path), decode)


def official_folder(path: Path, entry: Entry) -> Source:
    def digest() -> str:
        files = sorted(file for file in path.iterdir() if file.is_file())
        return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()

    return Source(str(path), digest, lambda: _read_official(path, entry, str(path)))


def _read_official(folder: Path, entry: Entry, name: str) -> Images:
    try:  # checks every file against its MD5 before it unpickles any
        parts = {split: _reader(entry)(folder.parent, train=split == "train") for split in SPLITS}
    except RuntimeError:
        raise DataError(
            f"{name} is not the official {entry.title}: a file is missing or its checksum is wrong"
        ) from None
    label_of = np.array([entry.classes.index(label) for label in parts["train"].classes], np.uint8)
    return Images(
        entry.name,
        entry.title,
        entry.classes,
        {split: part.data for split, part in parts.items()},
        {split: label_of[part.targets] for split, part in parts.items()},
        entry.superclasses,
    )

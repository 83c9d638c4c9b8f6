"""The original CIFAR-10 files: download, verify, read through torchvision; nothing unverified is unpickled."""

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

from cifar_lab.sources import (
    CLASSES,
    DATA,
    SPLITS,
    DataError,
    Images,
    Source,
    Unreachable,
    file_digest,
    open_with_progress,
    progress,
    staged,
)

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
SIZE = 170_498_071  # bytes of the archive
PIECE = 1 << 20
CONNECT_SECONDS = 10


def download() -> Path:
    """Fetch the official archive into data/. Raises Unreachable, or DataError for a bad checksum."""
    from torchvision.datasets import CIFAR10

    host = urllib.parse.urlparse(CIFAR10.url).hostname
    try:
        if not urllib.request.getproxies():
            _resolve(host)
        response = urllib.request.urlopen(CIFAR10.url, timeout=CONNECT_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        raise Unreachable(f"can't be downloaded from {host} ({getattr(cause, 'strerror', None) or cause})") from None
    size = int(response.headers.get("Content-Length", SIZE))
    with response, staged(DATA / ARCHIVE) as path, path.open("wb") as file:
        for _ in progress(range(-(-size // PIECE)), f"downloading {ARCHIVE}"):
            try:
                piece = response.read(PIECE)
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"the download from {host} broke off ({error})") from None
            file.write(piece)
        if file.tell() < size:
            raise Unreachable(f"the download from {host} broke off after {file.tell():,} of {size:,} bytes")
        file.flush()
        _verify(path, CIFAR10.tgz_md5, f"the download from {host}")
    return DATA / ARCHIVE


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


def official_archive(path: Path) -> Source:
    def decode() -> Images:
        from torchvision.datasets import CIFAR10

        _verify(path, CIFAR10.tgz_md5, str(path))
        with tempfile.TemporaryDirectory(dir=DATA) as folder:
            with open_with_progress(path, "unpacking") as file, tarfile.open(fileobj=file) as archive:
                archive.extractall(folder, filter="data")
            return _read_official(Path(folder) / FOLDER, str(path))

    return Source(lambda: file_digest(path), decode)


def official_folder(path: Path) -> Source:
    def digest() -> str:
        return hashlib.sha256("".join(file_digest(file) for file in sorted(path.glob("*_batch*"))).encode()).hexdigest()

    return Source(digest, lambda: _read_official(path, str(path)))


def _read_official(folder: Path, name: str) -> Images:
    from torchvision.datasets import CIFAR10

    try:  # checks every file against its MD5 before it unpickles any
        parts = {split: CIFAR10(folder.parent, train=split == "train") for split in SPLITS}
    except RuntimeError:
        raise DataError(f"{name} is not the official CIFAR-10: a file is missing or its checksum is wrong") from None
    return Images(
        "cifar10",
        "CIFAR-10",
        CLASSES,
        {split: part.data for split, part in parts.items()},
        {split: np.array(part.targets, np.uint8) for split, part in parts.items()},
    )

"""Atomic writes, digests and sizes of files."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cifar_lab.errors import UserError

HEX = 64  # digits of a SHA-256


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """A temporary path for a file or folder: renamed to `target` if the block succeeds, else removed.

    A file is flushed to disk before it replaces another, so a power cut leaves the old one or the new one. If another
    process has meanwhile created the folder `target`, that one is kept. Raises UserError if writing fails.
    """
    path = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(path)  # left by a killed process with the same id
        yield path
        if path.is_file():
            _flush(path)
        if not (path.is_dir() and target.is_dir()):
            os.replace(path, target)
            with suppress(OSError):  # not every file system can flush a folder
                _flush(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or f'{error}; is the disk full?'}") from None
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def size_of(path: Path) -> int:
    """Bytes in a file, or in all files below a folder; 0 if it is missing. Links are not followed."""
    files = [path] if path.is_file() or path.is_symlink() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def readable_size(size: int) -> str:
    """`12 B`, `3.4 MB`: with the largest unit that leaves at least 1 before the point."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.95 and units[1:]:
        value, units = value / 1000, units[1:]
    return f"{value:.1f} {units[0]}" if size > 999 else f"{size} B"


def seal(data: bytes) -> bytes:
    """A zip archive, such as torch.save writes, with its own SHA-256 appended as the archive's comment."""
    data = data[:-2] + HEX.to_bytes(2, "little")  # the length of the comment that follows
    return data + hashlib.sha256(data).hexdigest().encode()


def is_whole(path: Path) -> bool:
    """Whether a file has the digest that `seal` appended to it."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data[:-HEX]).hexdigest().encode() == data[-HEX:]

"""The files of a folder, a tar or a zip, one after the other; what an archive must not have is refused."""

import functools
import hashlib
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cifar_lab.data.sources import open_with_progress, progress
from cifar_lab.errors import DataError
from cifar_lab.files import file_digest

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # and hidden files: nobody misses them
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
# What a folder or archive may have: more is a mistake, or made to fill memory and time.
MOST_MEMBERS, MOST_BYTES, MOST_HEADER_BYTES, MOST_FILE_BYTES = 2_000_000, 1 << 38, 1 << 20, 1 << 28
FIRST = 16  # files of a tar that show what it holds
DEEPEST = 8  # folders in one another
Member = tuple[str, int, Callable[[], bytes]]  # name, size in bytes (-1 of what is no file), read


def is_archive(path: Path) -> bool:
    """Whether it is a file that is named as an archive."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def place_digest(path: Path) -> str:
    """Changes when an archive, or the list of a folder's files with their sizes and times, changes."""
    if path.is_file():
        return file_digest(path)
    listing = [
        (name, found.stat().st_size, found.stat().st_mtime_ns) for name, found in _walk(path) if _is(found.is_file)
    ]
    return hashlib.sha256(repr(listing).encode("utf-8", "surrogateescape")).hexdigest()


def members(path: Path, bar: str = "") -> Iterator[Member]:
    """The files at `path` but litter, their names with /, under a bar called `bar`. Raises DataError and DAMAGED."""
    kind = _of_folder if path.is_dir() else _of_zip if path.suffix.lower() == ".zip" else _of_tar
    total = 0
    for count, member in enumerate(kind(path, bar), 1):
        total += max(0, member[1])
        if count > MOST_MEMBERS or total > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_MEMBERS:,} files, or {MOST_BYTES >> 30} GiB of them")
        name, size, read = member
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not any(part.startswith(".") or part in LITTER for part in parts):
            yield "/".join(parts), size, read


def names(path: Path) -> list[str]:
    """Of the files in a zip, or of the first ones in a tar; none if it can't be read."""
    return _names(path, path.stat().st_mtime_ns, path.stat().st_size)


@functools.lru_cache(maxsize=8)
def _names(path: Path, *_: int) -> list[str]:
    try:
        return [name for name, *_ in islice(members(path), None if path.suffix.lower() == ".zip" else FIRST)]
    except (DataError, *DAMAGED):
        return []


def _is(kind: Callable[[], bool]) -> bool:
    """What `kind` says; false of a link that leads in a circle."""
    try:
        return kind()
    except OSError:
        return False


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, os.DirEntry]]:
    """Names below `folder` and what they are, in order; links are followed, but not to where they lie in."""
    real = os.path.realpath(folder)
    with os.scandir(folder) as entries:
        for found in sorted(entries, key=lambda found: found.name):
            if not _is(found.is_dir):
                yield prefix + found.name, found
                continue
            circle = found.is_symlink() and f"{real}/".startswith(f"{os.path.realpath(found)}/")
            if not (circle or found.name.startswith(".") or prefix.count("/") > DEEPEST):
                yield from _walk(Path(found), f"{prefix}{found.name}/")


def _of_folder(path: Path, bar: str) -> Iterator[Member]:
    found = _walk(path)
    for name, file in progress([*found], bar) if bar else found:
        is_file = _is(file.is_file)  # not a dangling link, a pipe or a device
        yield name, file.stat().st_size if is_file else -1, Path(file).read_bytes


def _of_tar(path: Path, bar: str) -> Iterator[Member]:
    opened = open_with_progress(path, bar) if bar else path.open("rb")
    with opened as file, tarfile.open(fileobj=file, tarinfo=_SmallHeaders) as archive:
        for member in archive:
            _refuse(path, member.name, not (member.isfile() or member.isdir()))
            if member.isfile():
                yield member.name, member.size, functools.partial(_read_tar_member, archive, member)


def _of_zip(path: Path, bar: str) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for member in progress(archive.infolist(), bar) if bar else archive.infolist():
            name = member.filename.replace("\\", "/")  # as some of Windows' programs write it
            _refuse(path, name, stat.S_ISLNK(member.external_attr >> 16))
            if not name.endswith("/"):
                yield name, member.file_size, functools.partial(_read_zip_member, archive, member)


class _SmallHeaders(tarfile.TarInfo):
    """Refuses long headers, which tarfile would read into memory whole."""

    LONG = (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )

    @classmethod
    def frombuf(cls, *arguments: Any) -> tarfile.TarInfo:
        found = super().frombuf(*arguments)
        if found.type in cls.LONG and found.size > MOST_HEADER_BYTES:
            raise RuntimeError(f"a header of {found.size:,} bytes")
        return found


def _refuse(path: Path, name: str, special: bool) -> None:
    """Nothing is unpacked here, but an archive with such members was made to do harm, or by mistake."""
    if special or name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"{path}: {name} is a link or leads out of the archive, which is refused")


def _read_tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""  # for a member that is no file


def _read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        return file.read(MOST_FILE_BYTES)

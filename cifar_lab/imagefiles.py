"""CIFAR-10 or CIFAR-100 as image files `<split>/<class>/<name>.png|jpg`, in a folder or in a tar or zip archive."""

import functools
import hashlib
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from cifar_lab.catalogue import SPLITS, Entry
from cifar_lab.sources import DataError, Images, Source, file_digest, open_with_progress, progress

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

Member = tuple[str, int, Callable[[], bytes]]  # name, size in bytes, read


def image_folder(path: Path, entry: Entry) -> Source:
    files = sorted(file for split in SPLITS for file in (path / split).glob("*/*") if file.is_file())

    def digest() -> str:
        listing = [(str(file.relative_to(path)), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]
        return hashlib.sha256(repr(listing).encode()).hexdigest()

    def members() -> Iterator[Member]:
        for file in progress(files, "decoding"):
            yield str(file), file.stat().st_size, file.read_bytes

    return Source(str(path), digest, lambda: _read_images(path, members, entry))


def image_archive(path: Path, entry: Entry) -> Source:
    def tar_members() -> Iterator[Member]:
        with open_with_progress(path, "decoding") as file, tarfile.open(fileobj=file) as archive:
            for member in archive:
                _refuse(path, member.name, not (member.isfile() or member.isdir()))
                if member.isfile():
                    yield member.name, member.size, functools.partial(_read_member, archive, member)

    def zip_members() -> Iterator[Member]:
        with zipfile.ZipFile(path) as archive:
            for member in progress(archive.infolist(), "decoding"):
                _refuse(path, member.filename, stat.S_ISLNK(member.external_attr >> 16))
                yield member.filename, member.file_size, functools.partial(archive.read, member)

    members = zip_members if path.suffix.lower() == ".zip" else tar_members
    return Source(str(path), lambda: file_digest(path), lambda: _read_images(path, members, entry))


def _refuse(path: Path, name: str, special: bool) -> None:
    """Nothing is unpacked here, but an archive with such members was made to do harm, or by mistake."""
    if special or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{path}: {name} is a link or leads out of the archive, which is refused")


def _read_images(path: Path, members: Callable[[], Iterator[Member]], entry: Entry) -> Images:
    found: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = {
        (split, name): [] for split in SPLITS for name in entry.classes
    }
    kinds = set()
    try:
        for name, size, read in members():
            *_, split, label, file = ("", "", *PurePosixPath(name).parts)
            kind = PurePosixPath(name).suffix.lower().replace("jpg", "jpeg")
            if split not in SPLITS or kind not in (".png", ".jpeg") or file.startswith("."):
                continue
            if label not in entry.classes:
                raise DataError(
                    f"{path}: {split}/{label} is not a class of {entry.title}; expected {', '.join(entry.classes)}"
                )
            kinds.add(kind[1:])
            found[split, label].append((file, _pixels(read, size, f"{path}: {split}/{label}/{file}")))
    except DAMAGED as error:
        raise DataError(
            f"{path} is truncated, damaged or unreadable ({str(error).partition(chr(10))[0] or type(error).__name__})"
        ) from None
    for split in SPLITS:
        empty = [name for name in entry.classes if not found[split, name]]
        if len(empty) == len(entry.classes):
            raise DataError(f"{path}: the split {split}/ has no images")
        if empty:
            raise DataError(f"{path}: {split}/ has no images of {', '.join(empty)}")
    images, labels = {}, {}
    for split in SPLITS:
        ordered = [
            (index, pixels)
            for index, name in enumerate(entry.classes)
            for _, pixels in sorted(found[split, name], key=lambda pair: pair[0])
        ]
        images[split] = np.stack([pixels for _, pixels in ordered])
        labels[split] = np.array([index for index, _ in ordered], np.uint8)
    kind = "jpeg" if "jpeg" in kinds else "png"
    title = f"{entry.title} ({kind.upper()} copy)"
    return Images(f"{entry.name}-{kind}", title, entry.classes, images, labels, entry.superclasses)


def _pixels(read: Callable[[], bytes], size: int, name: str) -> np.ndarray:
    """(32, 32, 3) uint8 of one encoded image."""
    if size > 1 << 20:
        raise DataError(f"{name} is not a 32x32 image ({size >> 20} MiB)")
    data = read()
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if image.size != (32, 32):
            raise DataError(f"{name} is {image.width}x{image.height}, not 32x32")
        return np.asarray(image.convert("RGB"))
    except UNDECODABLE as error:
        raise DataError(f"{name} is not a readable image ({str(error).split(' <')[0]})") from None


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return archive.extractfile(member).read()

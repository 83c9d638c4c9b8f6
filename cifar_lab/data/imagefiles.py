"""CIFAR-10 or CIFAR-100 as image files `<split>/<class>/<name>.png`, in a folder or in a tar or zip archive."""

import functools
import hashlib
import io
import lzma
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cifar_lab.data.catalogue import SPLITS, Entry
from cifar_lab.data.sources import Images, Source, open_with_progress, progress
from cifar_lab.errors import DataError, first_line, printable
from cifar_lab.files import file_digest

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # and hidden files: nobody misses them
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
WHITE = (255, 255, 255, 255)
# What an archive may have: more is a mistake, or made to fill memory and time.
MOST_MEMBERS, MOST_BYTES, MOST_HEADER_BYTES, MOST_IMAGE_BYTES = 200_000, 1 << 32, 1 << 20, 1 << 20
SHOWN = 3  # of the files that are left out
Member = tuple[str, int, Callable[[], bytes]]  # name, size in bytes, read


class NoImage(Exception):
    """What is wrong with an image, in a few words."""


def read_rgb(file: Path | io.BytesIO, check: Callable[[Image.Image], None] = lambda image: None) -> Image.Image:
    """An image as it is shown, in mode RGB: turned as its camera was, transparent parts white, 8 bits per channel.

    Of an animation the first frame. `check` may refuse it before it is decoded. Raises NoImage.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            check(image)
            kind = image.format
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits of grey
                values = np.asarray(image, np.float64)
                white = 65535 if image.mode != "F" else 255 if values.max() > 1 else 1
                image = Image.fromarray((255 * values / white).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
            image = image.convert("RGB")
            image.format = kind
            return image
    except (NoImage, FileNotFoundError, IsADirectoryError):
        raise
    except Exception as error:  # each of Pillow's readers has its own way to fail
        reason = str(error).partition(" <")[0].partition("\n")[0] or type(error).__name__
        raise NoImage(f"not a readable image ({reason})") from None


def image_folder(path: Path, entry: Entry) -> Source:
    found = {file for split in SPLITS for pattern in ("*/*", "**/*") for file in (path / split).glob(pattern)}
    files = sorted(file for file in found if not file.is_dir())  # those of linked classes, and what lies deeper

    def digest() -> str:
        listing = []
        for file in files:
            status = file.stat() if file.exists() else file.lstat()
            listing.append((str(file.relative_to(path)), status.st_size, status.st_mtime_ns))
        return hashlib.sha256(repr(listing).encode("utf-8", "surrogateescape")).hexdigest()

    def members() -> Iterator[Member]:
        for file in progress(files, "decoding"):
            regular = file.is_file()  # not a dangling link, a pipe or a device
            yield str(file.relative_to(path)), file.stat().st_size if regular else -1, file.read_bytes

    return Source(str(path), digest, lambda: _read_images(path, members, entry))


def image_archive(path: Path, entry: Entry) -> Source:
    def tar_members() -> Iterator[Member]:
        with (
            open_with_progress(path, "decoding") as file,
            tarfile.open(fileobj=file, tarinfo=_SmallHeaders) as archive,
        ):
            for member in archive:
                _refuse(path, member.name, not (member.isfile() or member.isdir()))
                if member.isfile():
                    yield member.name, member.size, functools.partial(_read_member, archive, member)

    def zip_members() -> Iterator[Member]:
        with zipfile.ZipFile(path) as archive:
            for member in progress(archive.infolist(), "decoding"):
                name = member.filename.replace("\\", "/")  # as some of Windows' programs write it
                _refuse(path, name, stat.S_ISLNK(member.external_attr >> 16))
                if not member.is_dir():
                    yield name, member.file_size, functools.partial(_read_zip_member, archive, member)

    members = zip_members if path.suffix.lower() == ".zip" else tar_members
    return Source(str(path), lambda: file_digest(path), lambda: _read_images(path, members, entry))


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
    if special or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{path}: {name} is a link or leads out of the archive, which is refused")


def _bounded(path: Path, members: Callable[[], Iterator[Member]]) -> Iterator[Member]:
    total = 0
    for count, member in enumerate(members(), 1):
        total += max(0, member[1])
        if count > MOST_MEMBERS or total > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_MEMBERS:,} files, or {MOST_BYTES >> 30} GiB of them")
        yield member


def _read_images(path: Path, members: Callable[[], Iterator[Member]], entry: Entry) -> Images:
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {
        (split, name): {} for split in SPLITS for name in entry.classes
    }
    kinds, roots, left_out = set(), {}, []
    try:
        for name, size, read in _bounded(path, members):
            parts = PurePosixPath(name).parts
            if not set(SPLITS) & set(parts[:-1]) or any(part.startswith(".") or part in LITTER for part in parts):
                continue
            *root, split, label, file = ("", *parts)[-max(3, len(parts)) :]
            if size < 0 or split not in SPLITS or PurePosixPath(file).suffix.lower() not in SUFFIXES:
                left_out.append(name)
                continue
            if label not in entry.classes:
                raise DataError(
                    f"{path}: {split}/{label} is not a class of {entry.title}; expected {', '.join(entry.classes)}"
                )
            roots.setdefault("/".join(root), name)
            kind, pixels = _pixels(read, size, f"{path}: {split}/{label}/{file}")
            kinds.add(kind)
            found[split, label][file] = pixels  # of an archive's members with one name the last, as when unpacked
    except DAMAGED as error:
        raise DataError(f"{path} is truncated, damaged or unreadable ({first_line(error)})") from None
    if len(roots) > 1:
        raise DataError(f"{path} has the images more than once: {' and '.join(list(roots.values())[:2])}; keep one")
    for split in SPLITS:
        empty = [name for name in entry.classes if not found[split, name]]
        if len(empty) == len(entry.classes):
            raise DataError(f"{path}: the split {split}/ has no images")
        if empty:
            raise DataError(f"{path}: {split}/ has no images of {', '.join(empty)}")
    if left_out:
        some = ", ".join(map(printable, left_out[:SHOWN])) + (", ..." if len(left_out) > SHOWN else "")
        print(
            f"{path}: {len(left_out)} files are no image <split>/<class>/<name>, and left out: {some}", file=sys.stderr
        )
    images, labels = {}, {}
    for split in SPLITS:
        ordered = [
            (index, pixels)
            for index, name in enumerate(entry.classes)
            for _, pixels in sorted(found[split, name].items())
        ]
        images[split] = np.stack([pixels for _, pixels in ordered])
        labels[split] = np.array([index for index, _ in ordered], np.uint8)
    kind = next(iter(sorted(kinds - {"png"})), "png")
    title = f"{entry.title} ({kind.upper()} copy)"
    return Images(f"{entry.name}-{kind}", title, entry.classes, images, labels, entry.superclasses)


def _pixels(read: Callable[[], bytes], size: int, name: str) -> tuple[str, np.ndarray]:
    """Format, as the content says, and (32, 32, 3) uint8 of one encoded image."""

    def check(image: Image.Image) -> None:
        if image.size != (32, 32):
            raise NoImage(f"{image.width}x{image.height}, not 32x32")

    if size > MOST_IMAGE_BYTES:
        raise DataError(f"{name} is not a 32x32 image ({size >> 20} MiB)")
    try:
        image = read_rgb(io.BytesIO(read()), check)
    except NoImage as error:
        raise DataError(f"{name} is {error}") from None
    return image.format.lower(), np.asarray(image)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return archive.extractfile(member).read()


def _read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        return file.read(MOST_IMAGE_BYTES)

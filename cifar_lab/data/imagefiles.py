"""Image files `<split>/<class>/<name>`, in a folder or archive, and how an image of any kind becomes 32x32 pixels."""

import io
import os
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cifar_lab.data import archives
from cifar_lab.data.catalogue import SPLITS, Entry
from cifar_lab.data.sources import Images, Source, label_type
from cifar_lab.errors import DataError, first_line, printable

SIDE = 32
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
LOSSLESS = (".png", ".bmp", ".ppm", ".tif", ".tiff")
SUFFIXES = (*LOSSLESS, ".jpg", ".jpeg", ".jfif", ".gif", ".webp")
SPLIT_OF = {"train": "train", "val": "train", "valid": "train", "validation": "train", "test": "test"}
ORIENTATION = 0x0112  # tag of EXIF
WHITE = (255, 255, 255, 255)
MOST_IMAGE_BYTES = 1 << 20  # of a 32x32 image
SHOWN = 3  # of the files that are left out


class NoImage(Exception):
    """What is wrong with an image, in a few words."""


def read_rgb(file: Path | io.BytesIO, check: Callable[[Image.Image], None] = lambda image: None) -> Image.Image:
    """An image as it is shown, in mode RGB: turned as its camera was, transparent parts white, 8 bits per channel.

    Of an animation the first frame. `check` may refuse it before it is decoded. Raises NoImage.
    """
    try:
        with Image.open(file, formats=FORMATS) as opened:
            check(opened)
            image: Image.Image = opened
            if image.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits of grey
                values = np.asarray(image, np.float64)
                white = 65535 if image.mode != "F" else 255 if values.max() > 1 else 1
                image = Image.fromarray((255 * values / white).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
            image = image.convert("RGB")  # which loads it
            image.format = opened.format
            return image
    except (NoImage, FileNotFoundError, IsADirectoryError):
        raise
    except Exception as error:  # each of Pillow's readers has its own way to fail
        reason = str(error).partition(" <")[0].partition("\n")[0] or type(error).__name__
        raise NoImage(f"not a readable image ({reason})") from None


def fit(image: Image.Image) -> np.ndarray:
    """(32, 32, 3) uint8 of an RGB image: its middle square, scaled; one of 32x32 as it is."""
    small = image.size == (SIDE, SIDE)
    return np.asarray(image if small else ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BILINEAR))


@dataclass
class Found:
    """What image files hold: pixels (32, 32, 3) uint8 by split ("" if there is none), class, file and root.

    kinds: formats, as the content says; fitted: names of those that had another size.
    """

    pixels: dict[tuple, np.ndarray] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    fitted: list[str] = field(default_factory=list)

    @property
    def classes(self) -> set[str]:
        return {label for _, label, *_ in self.pixels}

    @property
    def kind(self) -> str:
        """The format, of several the first that is not PNG."""
        return next(iter(sorted(self.kinds - {"png"})), "png")


def copy_source(path: Path, entry: Entry) -> Source:
    """A copy of `entry` as image files. Its decoding raises DataError for what is not 32x32 or of another class."""

    def decode() -> Images:
        return copy_of(entry, read_images(path, entry), path)

    return Source(str(path), lambda: f"{entry.name} {archives.place_digest(path)}", decode)


def seen(path: Path) -> tuple[set[str], str]:
    """Classes and the first suffix of image files, from the names alone; of a tar from those of its first files."""
    if path.is_dir():
        folders = [folder for split in SPLITS if (path / split).is_dir() for folder in (path / split).iterdir()]
        found = [folder for folder in folders if folder.is_dir() and not folder.name.startswith(".")]
        suffixes = (_suffix(file.name) for file in found[0].iterdir()) if found else iter(())
        return {folder.name for folder in found}, next(filter(None, suffixes), "")
    named = [name.split("/") for name in archives.names(path) if _suffix(name)] if archives.is_archive(path) else []
    in_splits = [parts for parts in named if len(parts) > 2 and parts[-3] in SPLITS]
    return {parts[-2] for parts in in_splits}, _suffix(in_splits[0][-1]) if in_splits else ""


def _suffix(name: str) -> str:
    """The suffix in lower case if it is that of images, else ""."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in SUFFIXES else ""


def read_images(path: Path, entry: Entry | None = None) -> Found:
    """The images at `path`: 32x32 ones of the classes of `entry`, else of any size and class. Raises DataError."""
    found, others = Found(), list[tuple[str, ...]]()
    roots, folders = dict[tuple, str](), set[tuple[str, ...]]()
    try:
        for name, size, read in archives.members(path, "decoding"):
            parts = tuple(name.split("/"))
            root, split, label = _parse(parts)
            if not _suffix(name) or size < 0 or not label or (entry and parts[-3:-2] != (split,)):
                others.append(parts)
                continue
            folders.add(parts[:-1])
            where = f"{split}/{label}" if split else label
            if entry and label not in entry.classes:
                known = ", ".join(entry.classes)
                raise DataError(f"{path}: {where} is not a class of {entry.title}; expected {known}")
            roots.setdefault((root, bool(split)), name)
            kind, pixels, fitted = decode(read, size, f"{path}: {where}/{parts[-1]}", entry is not None)
            found.kinds.add(kind)
            found.fitted += [name] * fitted
            key = split, label, "/".join(parts[len(root) :]), root
            found.pixels[key] = pixels  # of an archive's namesakes the last
    except archives.DAMAGED as error:
        raise DataError(f"{path} is truncated, damaged or unreadable ({first_line(error)})") from None
    left_out = _drop_outside(path, found, roots)
    left_out += ["/".join(p) for p in others if _suffix(p[-1]) or p[:-1] in folders or {*p[:-1]} & {*SPLITS}]
    if left_out:
        some = ", ".join(map(printable, left_out[:SHOWN])) + (", ..." if len(left_out) > SHOWN else "")
        print(f"{path}: left out, because no image of a class: {some} ({len(left_out)} in all)", file=sys.stderr)
    return found


def _parse(parts: tuple[str, ...]) -> tuple[tuple[str, ...], str, str]:
    """Root, split and class of a file by its path; "" where there is none."""
    if len(parts) > 2 and parts[-3].lower() in SPLIT_OF:
        return parts[:-3], SPLIT_OF[parts[-3].lower()], unicodedata.normalize("NFC", parts[-2])
    label = parts[-2] if len(parts) > 1 and parts[-2].lower() not in SPLIT_OF else ""
    return parts[:-2], "", unicodedata.normalize("NFC", label)  # macOS writes letters and accents apart


def _drop_outside(path: Path, found: Found, roots: dict[tuple, str]) -> list[str]:
    """Keep the images in splits where there are some, else the highest folder's; gives the names of the others.

    Raises DataError if they are in two folders, which may be the same images twice.
    """
    in_splits = any(split for split, *_ in found.pixels)
    depth = min((len(root) for root, _ in roots), default=0)
    kept = {key: name for key, name in roots.items() if (key[1] if in_splits else len(key[0]) == depth)}
    if len(kept) > 1:
        raise DataError(f"{path} has the images more than once: {' and '.join([*kept.values()][:2])}; keep one")
    outside = [key for key in found.pixels if (key[3], bool(key[0])) not in kept]
    for key in outside:
        del found.pixels[key]
    return ["/".join((*root, file)) for _, _, file, root in outside]


def decode(read: Callable[[], bytes], size: int, name: str, small: bool) -> tuple[str, np.ndarray, bool]:
    """Format, as the content says, (32, 32, 3) uint8 of an encoded image, and whether it had another size."""

    def check(image: Image.Image) -> None:
        if small and image.size != (SIDE, SIDE):
            raise NoImage(f"{image.width}x{image.height}, not {SIDE}x{SIDE}")

    if size > (MOST_IMAGE_BYTES if small else archives.MOST_FILE_BYTES):
        raise DataError(f"{name} is not {'a 32x32 image' if small else 'read: it is too large'} ({size >> 20} MiB)")
    try:
        image = read_rgb(io.BytesIO(read()), check)
    except NoImage as error:
        raise DataError(f"{name} is {error}") from None
    return str(image.format).lower(), fit(image), image.size != (SIDE, SIDE)


def copy_of(entry: Entry, found: Found, path: Path) -> Images:
    """The copy of `entry` that image files are. Raises DataError where images of a class are missing."""
    if found.fitted:
        raise DataError(f"{path}: {found.fitted[0]} is not {SIDE}x{SIDE}; --data-name makes it a data set of your own")
    for split in SPLITS:
        there = {label for part, label, *_ in found.pixels if part == split}
        if not there:
            raise DataError(f"{path}: the split {split}/ has no images")
        if empty := [name for name in entry.classes if name not in there]:
            raise DataError(f"{path}: {split}/ has no images of {', '.join(empty)}")
    title = f"{entry.title} ({found.kind.upper()} copy)"
    arrays = split_arrays(found, entry.classes)
    return Images(f"{entry.name}-{found.kind}", title, entry.classes, *arrays, entry.superclasses)


def split_arrays(found: Found, classes: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images and labels by split; a split without images is left out."""
    index, images, labels = {name: i for i, name in enumerate(classes)}, {}, {}
    for split in sorted({split for split, *_ in found.pixels}):
        keys = [key for key in found.pixels if key[0] == split]
        images[split] = np.stack([found.pixels[key] for key in keys])
        labels[split] = np.array([index[label] for _, label, *_ in keys], label_type(len(classes)))
    return images, labels

"""Classify image files of any size and format with a trained model."""

import argparse
import glob
import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cifar_lab.data.imagefiles import SUFFIXES, NoImage, fit, read_rgb
from cifar_lab.errors import printable
from cifar_lab.tracking import store
from cifar_lab.tracking.models import BATCH, load_model

MOST_BYTES = 1 << 28  # largest size of an image file


def run(options: argparse.Namespace) -> int:
    """Print the top classes of every image with their probabilities; 1 if an image could not be read, else 0."""
    files = _find(options.images)
    model = load_model(store.connect(), options.model, options.trust)
    answers: list[dict[str, Any]] = []
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        readings = [read_image(file) for file in part]
        pixels = [reading for reading in readings if isinstance(reading, np.ndarray)]
        rows = iter(model(np.stack(pixels)) if pixels else ())
        for file, reading in zip(part, readings, strict=True):
            if isinstance(reading, str):
                answers.append({"file": str(file), "error": reading})
                print(f"{printable(str(file))}: {printable(reading)}", file=sys.stderr)
            else:
                answers.append({"file": str(file), "predictions": _top(next(rows), model.classes, options.top)})
                if not options.json:
                    text = ", ".join(f"{p['class']} {p['probability']:.1%}" for p in answers[-1]["predictions"])
                    print(f"{printable(str(file))}: {text}")
    if options.json:
        print(json.dumps(answers, indent=2))
    return int(any("error" in answer for answer in answers))


def _find(images: Sequence[str]) -> list[Path]:
    """The files that the given files, folders and patterns name, each once; a name without matches is kept.

    One text may hold several names, like make's IMAGES.
    """
    found: list[Path] = []
    for name in [part for text in images for part in _parts(text)]:
        matches = _matches(name)
        for path in map(Path, matches or [name]):
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            found += inside or [path]
    return list(dict.fromkeys(found))


def _matches(name: str) -> list[str]:
    return [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))


def _parts(text: str) -> list[str]:
    with suppress(ValueError):  # an unclosed quote
        if not _matches(text) and any(map(_matches, parts := shlex.split(text))):
            return parts
    return [text]


def read_image(file: Path) -> np.ndarray | str:
    """The middle square of an image, scaled to (32, 32, 3) uint8; or the reason why it can't be read."""
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):
            return "not a file"
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            return f"too large: more than {MOST_BYTES >> 20} MiB"
        return fit(read_rgb(file))
    except FileNotFoundError:
        return "no such file"
    except IsADirectoryError:
        return f"no image files in this folder ({', '.join(SUFFIXES)})"
    except (NoImage, OSError, MemoryError) as error:
        return str(error)


def _top(probabilities: np.ndarray, classes: Sequence[str], top: int) -> list[dict[str, object]]:
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [{"class": classes[i], "probability": round(float(probabilities[i]), 6)} for i in order]

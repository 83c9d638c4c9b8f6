"""Classify image files of any size and format with a trained model."""

import argparse
import glob
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.tracking import MlflowClient

from cifar_lab.data.imagefiles import SUFFIXES, NoImage, fit, read_rgb
from cifar_lab.errors import UserError, printable
from cifar_lab.tracking import queries, registry, store
from cifar_lab.tracking.registry import load_registered

BATCH = 250
MOST_BYTES = 1 << 28  # largest size of an image file
Model = tuple[tuple[str, ...], Callable[[np.ndarray], np.ndarray]]  # classes; (n, 32, 32, 3) uint8 to (n, classes)


def run(options: argparse.Namespace) -> int:
    """Print the top classes of every image with their probabilities; 1 if an image could not be read, else 0."""
    files = _find(options.images)
    classes, probabilities = _load(store.connect(), options.model, options.trust)
    answers: list[dict[str, Any]] = []
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        readings = [read_image(file) for file in part]
        pixels = [reading for reading in readings if isinstance(reading, np.ndarray)]
        rows = iter(probabilities(np.stack(pixels)) if pixels else ())
        for file, reading in zip(part, readings, strict=True):
            if isinstance(reading, str):
                answers.append({"file": str(file), "error": reading})
                print(f"{printable(str(file))}: {printable(reading)}", file=sys.stderr)
            else:
                answers.append({"file": str(file), "predictions": _top(next(rows), classes, options.top)})
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


def _load(client: MlflowClient, model: str | None, trust: bool) -> Model:
    """A registered model by its address, a run's model by the beginning of its id, or the champion."""
    if model is None:
        model = registry.champion_address(client)
    if not model.startswith("models:/"):
        return _of_run(client, model, trust)
    found, classes = load_registered(model)
    return classes, found.predict


def _of_run(client: MlflowClient, prefix: str, trust: bool) -> Model:
    from cifar_lab.tracking.load import network_of
    from cifar_lab.tracking.summaries import load_confusion  # imports Lightning, which a registered model does not need

    run = queries.find_run(client, prefix)
    if run.data.tags.get("kind") not in ("run", "reproduction") or run.info.status != "FINISHED":
        raise UserError(f"run {prefix} is not a finished run ({run.info.run_name}, {run.info.status})")
    network = network_of(client, run, trust)

    def compute(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    return load_confusion(client, run)[0], compute


def _top(probabilities: np.ndarray, classes: Sequence[str], top: int) -> list[dict[str, object]]:
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [{"class": classes[i], "probability": round(float(probabilities[i]), 6)} for i in order]

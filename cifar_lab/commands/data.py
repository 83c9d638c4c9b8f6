"""Describe the images that are found: place, digest, number per class, a drawing of some."""

import argparse
from collections import Counter

import numpy as np

from cifar_lab.analysis.figures import plot_samples
from cifar_lab.data.cache import Dataset, decoded
from cifar_lab.data.search import find_source
from cifar_lab.data.sources import not_cifar10
from cifar_lab.files import atomic_write

COLUMNS, ROWS = 10, 100  # of the picture, at most


def _duplicates(dataset: Dataset) -> list[str]:
    """Lines that count images with equal pixels, within a split and across both."""
    kinds = {split: Counter(image.tobytes() for image in images) for split, images in dataset.images.items()}
    lines = [
        f"{count:,} {split} images repeat the pixels of an earlier one"
        for split, found in kinds.items()
        if (count := found.total() - len(found))
    ]
    both = sum(kinds["test"][image] for image in kinds["test"] if image in kinds["train"])
    return [*lines, *([f"{both:,} test images repeat the pixels of a train image"] if both else [])]


def run(options: argparse.Namespace) -> int:
    """Print a description of a data set and draw some of its training images. Raises UserError."""
    figure = options.figure
    source = find_source(options.data, options.data_dir, options.data_name)
    dataset = decoded(source)
    if source.fallback_reason:
        print(not_cifar10(source.fallback_reason))
    print(f"{dataset.title}, MLflow experiment {dataset.name}")
    print(f"from {source.place}, decoded in {dataset.folder}")
    if dataset.note:
        print(dataset.note)
    print(f"digest {dataset.digest}")
    for name, values in ("mean", dataset.mean), ("standard deviation", dataset.std):
        print(f"{name} of the training pixels, from 0 to 1: " + ", ".join(f"{value:.4f}" for value in values))
    counts = {split: np.bincount(labels, minlength=len(dataset.classes)) for split, labels in dataset.labels.items()}
    width = max(map(len, dataset.classes))
    print(f"\n{'class':{width}}  {'train':>6}  {'test':>6}")
    for index, name in enumerate(dataset.classes):
        print(f"{name:{width}}  {counts['train'][index]:6,}  {counts['test'][index]:6,}")
    print(f"{'all':{width}}  {counts['train'].sum():6,}  {counts['test'].sum():6,}")
    for line in _duplicates(dataset):
        print(line)
    columns = min(COLUMNS, counts["train"].min())
    drawn = dataset.classes[:ROWS]
    first = [np.flatnonzero(dataset.labels["train"] == label)[:columns] for label in range(len(drawn))]
    with atomic_write(figure) as path:
        images = dataset.images["train"][np.stack(first)]
        plot_samples(images, drawn).savefig(path, format=figure.suffix[1:], dpi=110)
    which = "each class" if len(drawn) == len(dataset.classes) else f"each of the first {ROWS} classes"
    print(f"\nthe first {columns} training images of {which} are drawn in {figure}")
    return 0

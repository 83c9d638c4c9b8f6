"""What an experiment takes of a data set: classes, and the split into training and validation images."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sklearn.model_selection import train_test_split

from cifar_lab.data.cache import Dataset, channel_statistics
from cifar_lab.data.catalogue import SPLITS
from cifar_lab.data.sources import label_type
from cifar_lab.errors import UsageError
from cifar_lab.sections import DataConfig

LONGEST_NAME = 30  # of classes, in that of their MLflow experiment


def select(dataset: Dataset, data: DataConfig) -> Dataset:
    """What `data.labels` and `data.classes` ask for, a data set with a name of its own; `dataset` itself if nothing.

    Labels count the classes in the order of the data set; `digest` stays that of the images chosen from.
    Raises UsageError for a class that is not there, or superclasses where there are none.
    """
    if data.labels == "coarse":
        dataset = _coarse(dataset)
    return _only(dataset, data.classes) if data.classes else dataset


def _coarse(dataset: Dataset) -> Dataset:
    if not dataset.superclasses:
        raise UsageError(f'data.labels = "coarse": {dataset.title} has no superclasses')
    classes = tuple(dict.fromkeys(dataset.superclasses))
    label_of = np.array([classes.index(superclass) for superclass in dataset.superclasses], label_type(len(classes)))
    labels = {split: label_of[values] for split, values in dataset.labels.items()}
    name, title = f"{dataset.name}-coarse", f"{dataset.title}, superclasses"
    return replace(dataset, name=name, title=title, classes=classes, superclasses=(), labels=labels)


def _only(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    if unknown := sorted(set(classes) - set(dataset.classes)):
        known = ", ".join(dataset.classes)
        raise UsageError(f"data.classes: {dataset.title} has no class {', '.join(unknown)}; it has: {known}")
    chosen = tuple(name for name in dataset.classes if name in classes)
    numbers = np.array([dataset.classes.index(name) for name in chosen])
    kept = {split: np.isin(labels, numbers) for split, labels in dataset.labels.items()}
    images = {split: dataset.images[split][kept[split]] for split in SPLITS}
    found = {split: np.searchsorted(numbers, dataset.labels[split][kept[split]]) for split in SPLITS}
    labels = {split: values.astype(label_type(len(chosen))) for split, values in found.items()}
    suffix = "-".join(chosen).replace(" ", "_")
    if len(suffix) > LONGEST_NAME:
        suffix = f"{len(chosen)}-classes-{hashlib.sha256(suffix.encode()).hexdigest()[:6]}"
    mean, std = channel_statistics(images["train"])
    title = f"{dataset.title}, only {', '.join(chosen) if len(chosen) < 4 else f'{len(chosen)} classes'}"
    superclasses = tuple(dataset.superclasses[number] for number in numbers) if dataset.superclasses else ()
    return replace(
        dataset,
        name=f"{dataset.name}-{suffix}",
        title=title,
        classes=chosen,
        superclasses=superclasses,
        mean=mean,
        std=std,
        images=images,
        labels=labels,
    )


def split_train(labels: np.ndarray, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and validation images: stratified, the same for every seed and model.

    `data.train_size` keeps some of the training images. Fewer of them are part of more, and never validation images.
    Raises UsageError if `data.val_size` is not 0 and does not leave every class an image on both sides, or if there are
    fewer training images than `data.train_size`, or fewer of these than classes.
    """
    train, val = np.arange(len(labels)), np.arange(0)
    if data.val_size != 0:
        try:
            train, val = train_test_split(train, test_size=data.val_size, stratify=labels, random_state=data.split_seed)
        except ValueError as error:
            raise UsageError(f"data.val_size = {data.val_size} of {len(labels)} training images: {error}") from None
    if data.train_size is not None:
        train = _first(train, labels[train], data.train_size)
    return np.sort(train), np.sort(val)


def _first(train: np.ndarray, labels: np.ndarray, size: int) -> np.ndarray:
    """`size` of the indices `train`, which are in random order, so that every class keeps its share."""
    kinds = len(np.unique(labels))
    if not kinds <= size <= len(train):
        raise UsageError(f"data.train_size = {size}: there are {len(train)} training images of {kinds} classes")
    place = np.empty(len(train))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return train[np.lexsort((labels, place))[:size]]


def noisy_labels(labels: np.ndarray, classes: int, data: DataConfig) -> np.ndarray:
    """Labels of all training images, of which `data.label_noise` are wrong: any other class is equally likely.

    Depends on `data.split_seed`, not on the seed of a run; the wrong labels of less noise are part of those of more.
    """
    generator = np.random.default_rng((data.split_seed, len(labels)))
    wrong = generator.random(len(labels)) < data.label_noise
    shifts = generator.integers(1, classes, len(labels))
    return np.where(wrong, (labels.astype(np.int64) + shifts) % classes, labels).astype(labels.dtype)


def split_digest(labels: np.ndarray, data: DataConfig) -> str:
    """12 hex digits of the validation indices, or "varied" and their number: results are comparable if it is equal."""
    if data.splits == "varied":
        return f"varied-{data.val_size}"
    return hashlib.sha256(split_train(labels, data)[1].tobytes()).hexdigest()[:12]

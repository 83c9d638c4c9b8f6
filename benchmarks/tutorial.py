"""The network of PyTorch's tutorial, trained as the tutorial trains it, beside ours."""

import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.commands import run_experiment
from benchmarks.inside import Pictures
from benchmarks.table import Row, timed
from cifar_lab.data.cache import Dataset

EPOCHS = 8


def tutorial() -> nn.Sequential:
    """The tutorial's network: two 5x5 convolutions, each with pooling, then two hidden layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def rows(dataset: Dataset) -> list[Row]:
    """Seconds and test accuracy of one run of `cnn` and of one of the tutorial, each on one core, with 8 epochs.

    The tutorial: pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html, with its batches of 4, SGD with learning
    rate 0.001 and momentum 0.9, and a loader with two workers, but 8 epochs in place of 2. It trains on all images.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        seconds, _, (run,) = run_experiment(dataset, "cnn", "--seeds", "1")
        other, accuracy = train_tutorial(dataset)
    finally:
        os.sched_setaffinity(0, cores)
    ours = (run.info.end_time - run.info.start_time) / 1000
    text = f"{ours:.0f} s, whole command {seconds:.0f} s, {run.data.metrics['test/acc']:.2%}"
    what = f"7. a run of `cnn` against the network of PyTorch's tutorial, {EPOCHS} epochs each, one core"
    return [Row(what, text, f"{other:.0f} s, {accuracy:.2%}", ours / other, "lower")]


def train_tutorial(dataset: Dataset, epochs: int = EPOCHS) -> tuple[float, float]:
    """Seconds of its epochs, and its test accuracy."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    half = (0.5, 0.5, 0.5)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])
    train, test = (
        DataLoader(Pictures(dataset, split, transform), batch_size=4, shuffle=split == "train", num_workers=2)
        for split in ("train", "test")
    )
    network = tutorial()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    passed = timed()
    for _ in range(epochs):
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
    seconds = passed()
    with torch.no_grad():
        correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in test)
    return seconds, correct / len(dataset.labels["test"])

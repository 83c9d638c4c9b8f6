"""A data set is its content: one order and one digest, however it was packed."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from cifar_lab.data.catalogue import SPLITS


def content_order(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices that sort (n, 32, 32, 3) uint8 images by the SHA-256 of their pixels, then by (n,) labels."""
    digests = [hashlib.sha256(image).digest() for image in np.ascontiguousarray(images)]
    return np.array(sorted(range(len(images)), key=lambda i: (digests[i], labels[i])), np.int64)


def content_digest(classes: Sequence[str], images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> str:
    """SHA-256, as hex digits, of class names and of the images and labels of each split, in the order they have."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for split in SPLITS:
        digest.update(np.ascontiguousarray(images[split]).data)
        digest.update(np.ascontiguousarray(labels[split]).data)
    return digest.hexdigest()

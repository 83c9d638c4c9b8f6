import numpy as np
import pytest

from cifar_lab.data.cache import load_dataset
from cifar_lab.data.catalogue import CIFAR10
from cifar_lab.data.selection import select
from cifar_lab.errors import UsageError
from cifar_lab.sections import DataConfig

pytestmark = pytest.mark.usefixtures("workplace")


def test_chosen_classes_are_a_data_set_of_their_own(image_folder):
    whole, _ = load_dataset("auto", image_folder)
    chosen = select(whole, DataConfig(classes=("ship", "cat")))
    assert (chosen.name, chosen.title, chosen.classes, chosen.digest) == (
        "cifar10-png-cat-ship",
        "CIFAR-10 (PNG copy), only cat, ship",
        ("cat", "ship"),
        whole.digest,
    )
    for split in ("train", "test"):
        kept = np.isin(whole.labels[split], (3, 8))
        assert chosen.labels[split].tolist() == [{3: 0, 8: 1}[label] for label in whole.labels[split][kept]]
        np.testing.assert_array_equal(chosen.images[split], whole.images[split][kept])
    np.testing.assert_allclose(chosen.mean, (chosen.images["train"] / 255).mean(axis=(0, 1, 2)))
    assert select(whole, DataConfig()) is whole
    with pytest.raises(UsageError, match="has no class lion, puma; it has: airplane, automobile, bird"):
        select(whole, DataConfig(classes=("puma", "cat", "lion")))


def test_many_chosen_classes_have_a_short_name_that_tells_them_apart(image_folder):
    whole, _ = load_dataset("auto", image_folder)
    nine = [tuple(name for name in CIFAR10.classes if name != left_out) for left_out in CIFAR10.classes]
    names = {select(whole, DataConfig(classes=classes)).name for classes in nine}
    assert len(names) == 10
    assert all(name.startswith("cifar10-png-9-classes-") and len(name) < 40 for name in names)

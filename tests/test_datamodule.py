import numpy as np
import pytest
import torch

from cifar_lab.config import DataConfig, UsageError
from cifar_lab.datamodule import Batches, TrainBatches, split_digest, split_train

LABELS = np.repeat(np.arange(10, dtype=np.uint8), 50)


def test_split_is_stratified_disjoint_and_constant():
    data = DataConfig(val_size=100)
    train, val = split_train(LABELS, data)
    assert np.bincount(LABELS[val]).tolist() == [10] * 10
    assert sorted([*train, *val]) == list(range(500))
    assert split_digest(LABELS, data) == split_digest(LABELS, data)
    assert split_digest(LABELS, data) != split_digest(LABELS, DataConfig(val_size=100, split_seed=1))


@pytest.mark.parametrize("size", [500, 9, 495])
def test_split_that_starves_a_side_is_refused(size):
    with pytest.raises(UsageError, match=f"data.val_size = {size} of 500 training images"):
        split_train(LABELS, DataConfig(val_size=size))


def make_batches(seed=0, epoch=0, batch_size=8, n=32, **data):
    images = torch.arange(n * 32 * 32 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).view(n, 32, 32, 3)
    return images, TrainBatches(images, torch.arange(n), batch_size, DataConfig(**data), seed, lambda: epoch)


def test_each_image_comes_once_per_epoch_and_keeps_its_label():
    images, batches = make_batches(flip=False, translate=0)
    pairs = list(batches)
    assert len(pairs) == len(batches) == 4
    labels = torch.cat([label for _, label in pairs])
    assert sorted(labels.tolist()) == list(range(32))
    assert labels.tolist() != list(range(32))
    torch.testing.assert_close(torch.cat([image for image, _ in pairs]), images[labels])


def test_order_and_augmentation_depend_on_seed_and_epoch_alone():
    def epoch_of(seed, epoch):
        return torch.cat([image for image, _ in make_batches(seed, epoch)[1]])

    torch.testing.assert_close(epoch_of(0, 3), epoch_of(0, 3))
    different = [epoch_of(0, 3), epoch_of(0, 4), epoch_of(1, 3), epoch_of(3, 0)]
    assert all(not a.equal(b) for i, a in enumerate(different) for b in different[:i])


def test_augmented_images_are_shifted_into_a_reflected_border_and_half_are_mirrored():
    images, batches = make_batches(n=256, batch_size=256, translate=2)
    augmented, labels = next(iter(batches))
    seen = []
    for image, label in zip(augmented.numpy(), labels.tolist(), strict=True):
        padded = np.pad(images[label].numpy(), ((2, 2), (2, 2), (0, 0)), mode="reflect")
        windows = {(y, x): padded[y : y + 32, x : x + 32] for y in range(5) for x in range(5)}
        seen += [
            (shift, mirrored)
            for shift, window in windows.items()
            for mirrored, candidate in ((False, window), (True, window[:, ::-1]))
            if np.array_equal(image, candidate)
        ]
    assert len(seen) == 256
    assert {shift for shift, _ in seen} == {(y, x) for y in range(5) for x in range(5)}
    assert 90 < sum(mirrored for _, mirrored in seen) < 166  # 128 ± 4.7 standard deviations


def test_last_training_batch_is_dropped_and_last_evaluation_batch_is_short():
    assert [len(label) for _, label in make_batches(batch_size=10)[1]] == [10, 10, 10]
    assert [len(label) for _, label in make_batches(batch_size=100)[1]] == [32]
    batches = Batches(torch.zeros(25, 32, 32, 3, dtype=torch.uint8), torch.zeros(25, dtype=torch.int64), 10)
    assert [len(label) for _, label in batches] == [10, 10, 5]
    assert len(batches) == 3

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_lab.config import Config
from cifar_lab.data.selection import split_digest, split_train
from cifar_lab.errors import UsageError
from cifar_lab.sections import DataConfig
from cifar_lab.training.batches import Batches, TrainBatches, training_side

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


def make_batches(seed=0, epoch=0, batch_size=8, n=32, micro_batch_size=None, rank=0, devices=1, **data):
    images = torch.arange(n * 32 * 32 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).view(n, 32, 32, 3)
    trainer = {"batch_size": batch_size, "micro_batch_size": micro_batch_size, "epochs": 8, "devices": devices}
    config = Config(model={"kind": "cnn"}, data=data, trainer=trainer)
    return images, TrainBatches(images, torch.arange(n), config, seed, lambda: epoch, rank)


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


def find_augmentation(images, batches, translate):
    """By label, the shift of every image and whether it is mirrored, found by exhaustive search."""
    side, seen = 2 * translate + 1, {}
    augmented, labels = next(iter(batches))
    for image, label in zip(augmented.numpy(), labels.tolist(), strict=True):
        padded = np.pad(images[label].numpy(), ((translate,) * 2, (translate,) * 2, (0, 0)), mode="reflect")
        (seen[label],) = [
            (y, x, mirrored)
            for y in range(side)
            for x in range(side)
            for mirrored in (False, True)
            if np.array_equal(image, padded[:, :: -1 if mirrored else 1][y : y + 32, x : x + 32])
        ]
    return seen


def test_images_are_shifted_into_a_reflected_border_and_mirrored_every_other_time():
    found = [find_augmentation(*make_batches(epoch=epoch, n=256, batch_size=256, translate=2), 2) for epoch in range(3)]
    assert {(y, x) for y, x, _ in found[0].values()} == {(y, x) for y in range(5) for x in range(5)}
    mirrored = [[found[epoch][label][2] for label in range(256)] for epoch in range(3)]
    assert 90 < sum(mirrored[0]) < 166  # 128 ± 4.7 standard deviations
    assert mirrored[1] == [not m for m in mirrored[0]]
    assert mirrored[2] == mirrored[0]


def test_sides_divide_the_epochs_and_images_are_resized_whole():
    images, _ = make_batches()
    sizes = []
    for epoch in (0, 3, 4, 7):
        _, batches = make_batches(epoch=epoch, flip=False, translate=0, sides=[16, 32])
        batch, labels = next(iter(batches))
        sizes.append(batch.shape)
        expected = np.stack(
            [Image.fromarray(images[i].numpy()).resize(batch.shape[1:3], Image.BILINEAR) for i in labels]
        )
        assert np.abs(batch.numpy().astype(int) - expected).max() <= 1
    assert sizes == [(8, 16, 16, 3)] * 2 + [(8, 32, 32, 3)] * 2


@pytest.mark.parametrize(
    ("epochs", "sides"), [(1, [32]), (2, [20, 32]), (4, [16, 20, 24, 32]), (6, [16, 20, 20, 24, 32, 32])]
)
def test_training_ends_with_the_last_side_however_many_epochs(epochs, sides):
    config = Config(model={"kind": "cnn"}, data={"sides": [16, 20, 24, 32]}, trainer={"epochs": epochs})
    assert [training_side(config, epoch) for epoch in range(epochs)] == sides


def test_micro_batches_are_the_parts_of_whole_batches():
    whole = list(make_batches(n=30, batch_size=8)[1])
    parts = list(make_batches(n=30, batch_size=8, micro_batch_size=4)[1])
    assert [len(label) for _, label in whole] == [8] * 3
    assert [len(label) for _, label in parts] == [4] * 6
    for kind in range(2):
        torch.testing.assert_close(torch.cat([b[kind] for b in whole]), torch.cat([b[kind] for b in parts]))


def test_of_too_few_images_for_a_batch_all_whole_parts_are_taken():
    assert [len(label) for _, label in make_batches(n=30, batch_size=80, micro_batch_size=8)[1]] == [8] * 3
    assert [len(label) for _, label in make_batches(n=30, batch_size=80, micro_batch_size=40)[1]] == [30]


def test_nothing_is_held_out_where_none_is_asked_for():
    train, val = split_train(LABELS, DataConfig(val_size=0))
    assert train.tolist() == list(range(500))
    assert len(val) == 0


def test_last_training_batch_is_dropped_and_last_evaluation_batch_is_short():
    assert [len(label) for _, label in make_batches(batch_size=10)[1]] == [10, 10, 10]
    assert [len(label) for _, label in make_batches(batch_size=100)[1]] == [32]
    batches = Batches(torch.zeros(25, 32, 32, 3, dtype=torch.uint8), torch.zeros(25, dtype=torch.int64), 10, lambda: 24)
    assert [(len(label), images.shape[1]) for images, label in batches] == [(10, 24), (10, 24), (5, 24)]
    assert len(batches) == 3


@pytest.mark.parametrize("micro_batch_size", [None, 6])
def test_devices_share_the_images_of_every_batch(micro_batch_size):
    settings = {"seed": 1, "epoch": 2, "batch_size": 12, "n": 40, "micro_batch_size": micro_batch_size}
    whole = list(make_batches(**settings)[1])
    shares = [list(make_batches(**settings, rank=rank, devices=3)[1]) for rank in range(3)]
    assert {len(share) for share in shares} == {len(whole)} == {36 // (micro_batch_size or 12)}
    for (images, labels), *parts in zip(whole, *shares, strict=True):
        torch.testing.assert_close(torch.cat([part[0] for part in parts]), images)
        assert torch.cat([part[1] for part in parts]).tolist() == labels.tolist()


@pytest.mark.parametrize("n", [1000, 501, 143, 3])
def test_devices_divide_images_in_order(n):
    images, labels = torch.zeros(n, 32, 32, 3, dtype=torch.uint8), torch.arange(n)
    shares = [list(Batches(images, labels, 250, lambda: 32, rank, devices=3)) for rank in range(3)]
    assert sorted(label for share in shares for _, part in share for label in part.tolist()) == list(range(n))
    assert all(shares)

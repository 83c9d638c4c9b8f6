from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_lab.config import Config
from cifar_lab.data.selection import noisy_labels, split_digest, split_train
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


def coloured(n=400):
    """Images of one grey each, brighter with their number, of classes 0, 1, ..."""
    images = torch.linspace(40, 200, n).round().to(torch.uint8).view(n, 1, 1, 1).expand(n, 32, 32, 3).contiguous()
    return images, torch.arange(n) % 10


def augmented(**data):
    """Images before and after augmentation, and the labels, in the order of the batch."""
    images, labels = coloured()
    config = Config(model={"kind": "cnn"}, data={"flip": False, "translate": 0, **data}, trainer={"batch_size": 400})
    (plain, _), (changed, targets) = (
        next(iter(TrainBatches(images, labels, one, 0, lambda: 3)))
        for one in (config.model_copy(update={"data": DataConfig(flip=False, translate=0)}), config)
    )
    return plain, changed, targets


def test_cutout_puts_a_square_of_the_mean_colour_anywhere():
    plain, changed, _ = augmented(cutout=8)
    cut = (changed == 120).all(3) & (plain != 120).all(3)
    assert (changed[~cut] == plain[~cut]).all()
    sizes = cut.sum((1, 2))[(plain != 120).all(3).all(2).all(1)]
    assert sizes.max() == 64
    assert sizes.min() >= 16  # a centre in a corner
    assert 0.5 < (sizes == 64).float().mean() < 0.65  # (24 / 32) ** 2 lie within the image
    assert cut.any(0).all()


def test_mixup_mixes_images_and_labels_in_the_same_share():
    plain, changed, shares = augmented(mixup=0.5)
    others = plain.roll(1, 0)
    kept = shares.max(1).values
    assert shares.sum(1).allclose(torch.ones(400))
    for own, other, mixed, share in zip(plain, others, changed, shares, strict=True):
        if share.max() == 1:  # both of one class
            continue
        assert mixed.unique().numel() == 1
        parts = {round(own.flatten()[0].item() * s + other.flatten()[0].item() * (1 - s)) for s in share.tolist()}
        assert mixed.flatten()[0].item() in {part + d for part in parts for d in (-1, 0, 1)}
    assert 0.75 < kept.mean() < 0.9  # E max(X, 1 - X) is 0.82 for the arcsine distribution


def test_cutmix_replaces_the_share_of_the_label():
    plain, changed, shares = augmented(cutmix=1)
    kept = (changed == plain).all(3).float().mean((1, 2))
    different = (plain.roll(1, 0)[:, 0, 0, 0] != plain[:, 0, 0, 0]) & (shares.max(1).values < 1)
    replaced = (changed == plain.roll(1, 0)).all(3) | (changed == plain).all(3)
    assert replaced.all()
    assert (shares - kept[:, None]).abs().min(1).values[different].max() < 1e-6
    assert different.sum() > 200
    assert 0.15 < kept.std() < 0.3


def test_with_both_half_of_the_images_get_each():
    _, changed, _ = augmented(mixup=1, cutmix=1)
    whole = changed.flatten(1).min(1).values == changed.flatten(1).max(1).values
    assert 0.4 < whole.float().mean() < 0.65  # CutMix replaces all or nothing of a few


def test_jitter_changes_brightness_within_its_limits():
    plain, changed, labels = augmented(jitter=0.1)
    factors = changed[:, 0, 0, 0] / plain[:, 0, 0, 0]
    assert labels.dtype == torch.int64
    assert 0.88 < factors.min() < 0.92
    assert 1.08 < factors.max() < 1.12


def test_augmentation_leaves_the_order_as_it_is_and_changes_with_the_epoch():
    images, labels = coloured()
    config = Config(model={"kind": "cnn"}, data={"cutout": 8, "jitter": 0.3}, trainer={"batch_size": 400})
    first, again, later = (
        next(iter(TrainBatches(images, labels, config, 0, lambda epoch=epoch: epoch))) for epoch in (0, 0, 2)
    )
    assert first[0].equal(again[0])
    assert not first[0].equal(later[0])
    plain = Config(model={"kind": "cnn"}, trainer={"batch_size": 400})
    assert first[1].equal(next(iter(TrainBatches(images, labels, plain, 0, lambda: 0)))[1])


def test_a_smaller_training_set_is_stratified_and_part_of_a_larger_one():
    sizes = (10, 55, 200, 400)
    sets = [set(split_train(LABELS, DataConfig(val_size=100, train_size=size))[0].tolist()) for size in sizes]
    assert [len(one) for one in sets] == list(sizes)
    assert all(small < large for small, large in pairwise(sets))
    counts = np.bincount(LABELS[sorted(sets[1])], minlength=10)
    assert counts.sum() == 55
    assert set(counts) == {5, 6}
    val = split_train(LABELS, DataConfig(val_size=100))[1]
    assert split_train(LABELS, DataConfig(val_size=100, train_size=55))[1].tolist() == val.tolist()
    for size in (9, 401):
        with pytest.raises(UsageError, match=f"data.train_size = {size}: there are 400 training images of 10 classes"):
            split_train(LABELS, DataConfig(val_size=100, train_size=size))


def test_label_noise_is_symmetric_and_grows():
    labels = np.repeat(np.arange(10, dtype=np.uint8), 2000)
    some, more = (noisy_labels(labels, 10, DataConfig(label_noise=share)) for share in (0.2, 0.4))
    wrong = some != labels
    assert 0.19 < wrong.mean() < 0.21
    assert (more[wrong] == some[wrong]).all()
    assert some.dtype == np.uint8
    away = np.bincount((some[wrong].astype(int) - labels[wrong]) % 10, minlength=10)
    assert away[0] == 0
    assert away[1:].min() > 0.85 * wrong.sum() / 9
    assert (noisy_labels(labels, 10, DataConfig()) == labels).all()

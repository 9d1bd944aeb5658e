"""Data sets by name; and the digits: their shapes, their split, and the same batches for the same seed."""

import itertools
import sys

import pytest
import torch

from pararealize import data as face
from pararealize.data import catalogue, idx_files
from pararealize.data.augmentation import Augmentation
from pararealize.data.catalogue import digits, load, names
from pararealize.data.dataset import Split
from pararealize.errors import DataError


def test_shapes_and_normalisation():
    data = digits(image_size=16, channels=1)
    assert data.images.shape == (1437, 1, 16, 16)
    assert data.test_images.shape == (360, 1, 16, 16)
    assert data.images.mean().item() == pytest.approx(0, abs=1e-4)
    assert data.images.std().item() == pytest.approx(1, abs=1e-4)
    assert set(data.labels.tolist()) == set(data.test_labels.tolist()) == set(range(10))
    assert str(data) == "digits: 1437 training and 360 test images of 1×16×16, 10 classes, batches of 64"


def test_images_are_the_originals():
    """At the size they have, and with normalisation undone, every original image is there exactly once."""
    from sklearn.datasets import load_digits

    data = digits(image_size=8, channels=1)
    seen = torch.cat([data.images, data.test_images]).flatten(1)
    raw = torch.from_numpy(load_digits().images).float().flatten(1)
    scale = raw.max() / (seen.max() - seen.min())
    restored = ((seen - seen.min()) * scale).round()
    assert sorted(map(tuple, restored.tolist())) == sorted(map(tuple, raw.tolist()))


def test_an_epoch_sees_every_image_once_and_follows_the_seed():
    data = digits(batch_size=100, seed=3, image_size=8, channels=1)
    batches = list(data.batches())
    assert [len(labels) for _, labels in batches] == [100] * 14 + [37]
    assert torch.equal(
        torch.cat([labels for _, labels in batches]).bincount(),
        data.labels.bincount(),
    )
    again = next(digits(batch_size=100, seed=3, image_size=8, channels=1).batches())
    other = next(digits(batch_size=100, seed=4, image_size=8, channels=1).batches())
    assert torch.equal(batches[0][0], again[0])
    assert not torch.equal(batches[0][0], other[0])


def test_the_split_does_not_follow_the_seed():
    assert torch.equal(
        digits(seed=0, image_size=8, channels=1).test_images, digits(seed=1, image_size=8, channels=1).test_images
    )


def test_endless_batches_and_no_batch_of_one():
    data = digits(batch_size=1436, image_size=8, channels=1)
    assert [len(labels) for _, labels in itertools.islice(data.batches(None), 3)] == [1437] * 3
    assert sum(len(labels) for _, labels in data.test_batches()) == 360


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"image_size": -1}, {"channels": 0}])
def test_numbers_must_be_positive(wrong):
    with pytest.raises(DataError, match="positive numbers"):
        digits(**wrong)


def test_scikit_learn_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"scikit-learn, which is not installed; say pip install"):
        digits()


def test_load_gives_the_same_digits():
    plain, loaded = digits(128, 5), load("digits", seed=5)
    for (x, labels), (y, others) in zip(plain.batches(), loaded.epoch(0), strict=True):
        assert torch.equal(x, y)
        assert torch.equal(labels, others)


def test_a_smaller_set_is_part_of_a_larger_one():
    small, large = (load("digits", count=count, image_size=8, channels=1) for count in ((10, 5), (100, 50)))
    assert (small.train_count, small.test_count) == (10, 5)
    assert torch.equal(large.images[:10], small.images)
    assert torch.equal(large.test_labels[:5], small.test_labels)


def test_augmented_digits_are_not_mirrored():
    data = load("digits", augment=True)
    black = (data.images.min().item(),) * 3
    assert data.augmentation == Augmentation(padding=4, flip=False, black=black)
    assert load("digits").augmentation is None
    images, _ = next(data.epoch(0))
    assert images[:, :, 0].max() > images.min() == black[0], "crops reach into the margin, which is black"
    assert not (images == 0).any(), "which is the mean grey of stored digits"


@pytest.mark.parametrize("size", [None, 6])
def test_who_takes_fewer_images_gets_the_same_inputs(size, monkeypatch):
    """Mean and deviation are the whole training part's; another count changed the images of a test."""
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8) * torch.arange(60).view(-1, 1, 1, 1) // 60
    labels = torch.arange(60) % 10
    split = Split(classes=10, images=images, labels=labels, test_images=images[:20], test_labels=labels[:20])
    monkeypatch.setattr(idx_files, "read", lambda *_: split)
    whole, fewer = (load("mnist", image_size=size, count=count) for count in ((60, 10), (1, 10)))
    assert fewer.train_count == 1
    (x, _), (y, _) = (next(data.test_batches()) for data in (whole, fewer))
    assert torch.equal(x, y)
    assert torch.equal(load("mnist", image_size=size).scale.mean, fewer.scale.mean)


def test_fewer_glyphs_are_the_same_inputs(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "SCALED_BY", 30)
    few, more = (load("glyphs", data_dir=tmp_path, count=(train, 4)) for train in (2, 40))
    assert (few.train_count, more.train_count) == (2, 40)
    assert torch.equal(few.images, more.images[:2])
    assert torch.equal(few.test_images, more.test_images)
    assert torch.equal(few.scale.deviation, more.scale.deviation)


def test_names():
    assert names() == [
        "cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "digits", "glyphs", "glyphs:clean", "glyphs:system",
        "imagefolder:DIR", "peaks",
    ]  # fmt: skip
    assert (face.names, face.load, face.digits) == (names, load, digits)


@pytest.mark.parametrize("name", ["", ":", "digits:", "digits:clean", "glyphs:", "glyphs:dirty", "peaks:DIR", "DIGITS"])
def test_variants_that_there_are_not(name):
    with pytest.raises(DataError, match=f"no data set is called {name!r}; there are"):
        load(name)


def test_means_and_deviations_of_ones_own():
    """(x − mean) / std of pixels from 0 to 1, one for each channel or one for all."""
    plain = load("digits", image_size=8, mean=[0.0], std=[1.0], count=(50, 10))
    assert (float(plain.images.min()), float(plain.images.max())) == (0.0, 1.0)
    other = load("digits", image_size=8, mean=(0.5, 0.25, 0.0), std=(0.5, 1, 2), count=(50, 10))
    expected = (plain.images - torch.tensor([0.5, 0.25, 0.0]).view(3, 1, 1)) / torch.tensor([0.5, 1, 2]).view(3, 1, 1)
    torch.testing.assert_close(other.images, expected)
    for wrong in ({"mean": (0.5,)}, {"mean": (0.5,), "std": (0.0,)}, {"mean": ("a",), "std": (1,)}, {"std": ()}):
        with pytest.raises(DataError, match="are no means and deviations of channels"):
            load("digits", **wrong)
    with pytest.raises(DataError, match="has 3 channels here, and there are 2 means and 1 deviations"):
        load("digits", mean=(0, 0), std=(1,))


def test_points_are_no_images():
    for option in ({"augment": True}, {"image_size": 8}, {"channels": 1}):
        with pytest.raises(DataError, match="peaks has points and no images"):
            load("peaks", **option)
    assert load("peaks", augment=False).augmentation is None


def test_unknown_names_and_empty_parts():
    with pytest.raises(DataError, match="no data set is called 'imagenet'; there are cifar10, cifar100"):
        load("imagenet")
    with pytest.raises(DataError, match=r"count = \(0, 5\) leaves a part empty"):
        load("digits", count=(0, 5))


@pytest.mark.parametrize("count", [10, (2.5, 3), ("a", 3), (1, 2, 3), "12"])
def test_a_count_is_a_pair(count):
    with pytest.raises(DataError, match=r"is no pair of integers; write \(train, test\)"):
        load("digits", count=count)

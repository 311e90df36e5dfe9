"""PolyMNIST: the recipe, what is kept apart, and what depends on what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from multivae_core.errors import DataError
from multivae_datasets import polymnist
from multivae_datasets._files import read_arrays

NAMES = ("m0", "m1", "m2", "m3", "m4")


def everything(data):
    return data.batch(torch.arange(len(data)))


@pytest.fixture(scope="module")
def batch():
    return everything(polymnist.load("train", n=60, seed=3))


def test_shapes_range_and_labels(batch):
    assert batch.names == NAMES
    for x in batch.values.values():
        assert x.shape == (60, 3, 28, 28)
        assert x.dtype == torch.float32
        assert x.min() >= 0
        assert x.max() <= 1
    assert batch.labels.dtype == torch.int64
    assert set(batch.labels.tolist()) <= set(range(10))
    assert batch.present.all()


def test_default_takes_every_digit_once_per_modality():
    classes = read_arrays("mnist10k")["labels"].astype(np.int64)
    test = polymnist.load("test", size=14, modalities=1)
    assert len(test) == 2000
    labels = everything(test).labels.numpy()
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(classes[8000:]))
    drawn = polymnist._draw(classes[:8000], 8000, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(drawn, axis=0), np.arange(8000)[:, None] + np.zeros(5))


def test_rows_show_five_different_digits_of_one_class():
    classes = read_arrays("mnist10k")["labels"][:8000].astype(np.int64)
    drawn = polymnist._draw(classes, 20000, np.random.default_rng(1))
    assert drawn.shape == (20000, 5)
    assert (classes[drawn] == classes[drawn[:, :1]]).all()
    ordered = np.sort(drawn, axis=1)
    assert (ordered[:, 1:] > ordered[:, :-1]).all()
    # A second pass pairs the digits anew.
    assert len(np.unique(drawn, axis=0)) > 19900


@pytest.mark.parametrize(("split", "rows"), [("train", slice(8000)), ("test", slice(8000, None))])
def test_every_picture_is_a_piece_of_its_photo_inverted_by_a_digit_of_its_split(split, rows):
    # Undo the recipe: a pixel equals that of a piece of the photo, or its inverse. Search every
    # position for the piece, read the digit off, and find it among the digits of the split.
    batch = everything(polymnist.load(split, n=2, seed=5))
    digits = read_arrays("mnist10k")
    inked = digits["images"][rows] > 25
    classes = digits["labels"][rows]
    photos = read_arrays("backgrounds")
    for name, background in zip(NAMES, polymnist.BACKGROUNDS, strict=True):
        pieces = sliding_window_view(photos[background], (28, 28), axis=(0, 1))
        for picture, label in zip(batch.values[name].numpy(), batch.labels, strict=True):
            seen = np.rint(picture * 255).astype(np.uint8)
            corner = (pieces[:, :, :, :4, :4] == seen[:, :4, :4]).all(axis=(2, 3, 4))
            found = []
            for y, x in np.argwhere(corner):
                ink = (seen == 255 - pieces[y, x]).all(axis=0)
                if (ink | (seen == pieces[y, x]).all(axis=0)).all():
                    found += list(np.flatnonzero((inked == ink).all(axis=(1, 2))))
            assert found
            assert int(label) in set(classes[found].tolist())


def test_small_pictures_are_means_over_two_by_two_pixels(batch):
    small = everything(polymnist.load("train", n=60, seed=3, size=14))
    for name, x in batch.values.items():
        pooled = torch.nn.functional.avg_pool2d(x, 2)
        torch.testing.assert_close(small.values[name], pooled)


def test_same_seed_same_pictures_and_fewer_modalities_change_nothing(batch):
    again = everything(polymnist.load("train", n=60, seed=3, modalities=2))
    assert again.names == ("m0", "m1")
    assert torch.equal(again.labels, batch.labels)
    assert all(torch.equal(again.values[name], batch.values[name]) for name in again.names)


@pytest.mark.parametrize("other", [{"seed": 4}, {"split": "test"}])
def test_seed_and_split_change_the_rows(batch, other):
    assert not torch.equal(
        everything(polymnist.load(**{"split": "train", "n": 60, "seed": 3, **other})).values["m0"],
        batch.values["m0"],
    )


def test_numbers_stay_the_same_between_versions():
    # A change of these sums is a change of everybody's data set: it needs a note in CHANGELOG.
    batch = everything(polymnist.load("test", n=20, seed=0))
    total = [round(float(x.double().sum() * 255)) for x in batch.values.values()]
    assert total == TOTALS
    assert batch.labels.tolist() == LABELS


TOTALS = [5080321, 5474550, 4789631, 2836260, 4407162]
LABELS = [3, 0, 3, 8, 0, 8, 0, 9, 2, 6, 6, 6, 6, 2, 6, 3, 1, 6, 6, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split must be 'train' or 'test', got 'valid'"),
        ({"n": 0}, "n must be at least 1 row"),
        ({"size": 32}, "size must be 28 or 14 pixels, got 32"),
        ({"modalities": 6}, "modalities must be 1 to 5, got 6"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(DataError, match=f"polymnist: {message}"):
        polymnist.load(**options)

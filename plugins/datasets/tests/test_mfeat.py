"""The six views: what the file holds, and the refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multivae_core.errors import DataError
from multivae_datasets import mfeat
from multivae_datasets._files import read_arrays

WIDTHS = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}


@pytest.fixture(scope="module")
def batch():
    return mfeat.load().batch(torch.arange(2000))


def test_views_have_the_published_sizes_and_are_complete(batch):
    assert {name: tuple(x.shape) for name, x in batch.values.items()} == {
        name: (2000, width) for name, width in WIDTHS.items()
    }
    assert {x.dtype for x in batch.values.values()} == {torch.float32}
    assert batch.present.all()
    assert not batch.observed
    assert all(x.isfinite().all() for x in batch.values.values())


def test_rows_are_in_class_order_200_a_digit(batch):
    assert torch.equal(batch.labels, torch.arange(10).repeat_interleave(200))


def test_float32_loses_nothing_of_the_stored_numbers(batch):
    stored = read_arrays("mfeat")
    for name, x in batch.values.items():
        np.testing.assert_array_equal(x.numpy().astype(np.float64), stored[name])


def test_ranges_are_those_of_the_docstring(batch):
    ranges = {name: (float(x.min()), float(x.max())) for name, x in batch.values.items()}
    assert ranges["pix"] == (0, 6)
    assert ranges["fac"] == (0, 1353)
    assert ranges["mor"][1] == pytest.approx(17572, abs=1)
    assert ranges["kar"] == (pytest.approx(-16.459), pytest.approx(17.049))


def test_a_picture_shows_its_digit(batch):
    # The mean picture of the zeros has a hole in the middle and that of the ones does not:
    # rows and columns would be confused by a wrong shape.
    pictures = batch.values["pix"].reshape(10, 200, *mfeat.PICTURE_SHAPE).mean(dim=1)
    middle = pictures[:, 6:10, 6:9].mean(dim=(1, 2))
    assert middle[0] < 0.5
    assert middle[1] > 3
    # A turned-over zero is nearly itself left to right, not so a seven.
    flipped = (pictures - pictures.flip(2)).abs().mean(dim=(1, 2))
    assert flipped[0] < flipped[7]


def test_chosen_views_come_in_the_order_of_the_file():
    assert mfeat.load(["zer", "mor"]).names == ("mor", "zer")
    assert mfeat.load("pix").names == ("pix",)


@pytest.mark.parametrize("views", [["pix", "svhn"], []])
def test_wrong_views_are_refused_with_the_list(views):
    with pytest.raises(DataError, match="mfeat: .*the views are fac, fou, kar, mor, pix, zer"):
        mfeat.load(views)


def test_a_missing_data_file_is_named_with_the_remedy():
    with pytest.raises(DataError, match=r"data/nothing\.npz .*reinstall multivae-datasets"):
        read_arrays("nothing")

"""MNIST: what the file holds, what is drawn, and the refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import multivae_core as mv
from multivae_core.errors import DataError
from multivae_datasets import mnist
from multivae_datasets._files import read_arrays


def everything(data):
    return data.batch(torch.arange(len(data)))


@pytest.fixture(scope="module")
def intensities():
    return everything(mnist.load("test"))


@pytest.mark.parametrize(("split", "rows"), [("train", slice(8000)), ("test", slice(8000, None))])
def test_rows_are_those_of_the_file(split, rows):
    batch = everything(mnist.load(split))
    digits = read_arrays("mnist10k")
    assert batch.names == ("image", "label")
    assert batch.present.all()
    assert batch.values["image"].dtype == torch.float32
    assert batch.values["label"].dtype == torch.uint8
    pixels = np.rint(batch.values["image"][:, 0].numpy() * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels, digits["images"][rows])
    np.testing.assert_array_equal(batch.labels.numpy(), digits["labels"][rows])
    assert batch.labels.dtype == torch.int64
    assert torch.equal(batch.values["label"].argmax(dim=1), batch.labels)
    assert (batch.values["label"].sum(dim=1) == 1).all()


def test_fewer_rows_are_the_first_ones(intensities):
    few = everything(mnist.load("test", n=7))
    for name, x in few.values.items():
        assert torch.equal(x, intensities.values[name][:7])
    assert torch.equal(few.labels, intensities.labels[:7])


def test_pixels_are_drawn_with_their_intensity(intensities):
    grey = intensities.values["image"]
    draws = torch.stack(
        [everything(mnist.load("test", binarise=True, seed=s)).values["image"] for s in range(4)]
    )
    assert draws.dtype == torch.bool
    assert not draws[:, grey == 0].any()
    assert draws[:, grey == 1].all()
    for low in (0.1, 0.3, 0.5, 0.7):
        shade = (grey > low) & (grey <= low + 0.2)
        drawn = draws[:, shade].double()
        error = 0.5 / drawn.numel() ** 0.5
        assert abs(float(drawn.mean() - grey[shade].double().mean())) < 4 * error


def test_a_draw_depends_on_seed_and_split_and_not_on_n():
    def pixels(split="train", n=200, seed=0):
        return everything(mnist.load(split, n=n, binarise=True, seed=seed)).values["image"]

    assert torch.equal(pixels(), pixels())
    assert torch.equal(pixels(n=20), pixels()[:20])
    assert not torch.equal(pixels(seed=1), pixels())
    # The same random numbers in both splits would show where grey values agree.
    train, test = (everything(mnist.load(s, n=200)).values["image"] for s in ("train", "test"))
    agree = ((train - test).abs() < 0.05) & (train > 0.4) & (train < 0.6)
    same = (pixels() == pixels("test"))[agree].double().mean()
    assert 0.3 < same < 0.7


def test_numbers_stay_the_same_between_versions():
    # A change of these sums is a change of everybody's data set: it needs a note in CHANGELOG.
    counts = [
        int(everything(mnist.load(split, n=100, binarise=True)).values["image"].sum())
        for split in ("train", "test")
    ]
    assert counts == COUNTS


COUNTS = [9920, 11286]


def test_a_model_takes_both_modalities_after_the_label_was_told():
    pytest.importorskip("multivae_aggregated", reason="the model is in another package")
    data = mv.load_dataset("mnist", n=20, binarise=True)
    with pytest.raises(DataError, match="'label' holds integers"):
        mv.create_model("mvae", data)
    model = mv.create_model("mvae", data, modalities={"label": {"likelihood": "categorical"}})
    assert model.config.modalities["image"].likelihood.__class__.__name__ == "BernoulliConfig"
    assert torch.isfinite(model.log_likelihood(data, n_samples=2).value).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split must be 'train' or 'test', got 'valid'"),
        ({"n": 0}, "n must be 1 to 8000"),
        ({"n": 2.5}, "n must be 1 to 8000"),
        ({"seed": -1}, "seed must be 0, 1, 2"),
        ({"split": "test", "n": 2001}, "n must be 1 to 2000, the rows of 'test'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(DataError, match=f"mnist: {message}"):
        mnist.load(**options)

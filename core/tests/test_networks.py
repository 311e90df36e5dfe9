"""The default networks: exact shapes, empty batches, masks, rows that do not mix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from multivae_core.errors import ConfigError
from multivae_core.networks import (
    Conv1dConfig,
    Conv1dDecoder,
    Conv1dEncoder,
    ConvConfig,
    ConvDecoder,
    ConvEncoder,
    MLPConfig,
    MLPDecoder,
    MLPEncoder,
    default_network,
)
from multivae_core.networks.heads import ModalityEncoder, PlainTrunk, check_decoder

ENCODERS = {"mlp": MLPEncoder, "conv": ConvEncoder, "conv1d": Conv1dEncoder}
DECODERS = {"mlp": MLPDecoder, "conv": ConvDecoder, "conv1d": Conv1dDecoder}
SMALL = {
    "mlp": MLPConfig(hidden=(8,)),
    "conv": ConvConfig(channels=(4, 6), hidden=(8,)),
    "conv1d": Conv1dConfig(channels=(4, 6), hidden=(8,)),
}
KINDS = [
    ("mlp", (7,)),
    ("mlp", ()),
    ("mlp", (2, 3)),
    ("conv", (3, 5, 8)),
    ("conv", (1, 4, 4)),
    ("conv", (2, 4, 5, 7)),
    ("conv1d", (2, 11)),
]


def pair(name, shape, with_mask=False, config=None, latents=3):
    torch.manual_seed(0)
    config = config or SMALL[name]
    encoder = ENCODERS[name](config, shape, with_mask)
    return encoder.double(), DECODERS[name](config, latents, shape).double()


side = st.integers(4, 19)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 3), side, side),
        st.tuples(st.integers(1, 2), st.integers(4, 9), st.integers(4, 9), st.integers(4, 9)),
        st.tuples(st.integers(1, 3), st.integers(8, 40)),
        st.tuples(st.integers(1, 9)),
        st.just(()),
    ),
    with_mask=st.booleans(),
    normalisation=st.sampled_from([None, "layer"]),
    rows=st.integers(0, 3),
)
def test_shapes_come_back_exactly(shape, with_mask, normalisation, rows):
    name = default_network(shape)
    options = {"hidden": (8,), "normalisation": normalisation}
    if name != "mlp":
        options["channels"] = (4, 6, 8)
    config = type(SMALL[name])(**options)
    encoder, decoder = pair(name, shape, with_mask, config)
    x = torch.randn(rows, *shape, dtype=torch.float64)
    features = encoder(x, x > 0)
    assert features.shape == (rows, encoder.out_features)
    assert decoder(torch.randn(rows, 3, dtype=torch.float64)).shape == (rows, *shape)


@pytest.mark.parametrize("size", [28, 14, 32, 64, 15])
def test_usual_images_keep_their_size_with_the_defaults(size):
    decoder = ConvDecoder(ConvConfig(), 4, (1, size, size + 1))
    assert decoder(torch.zeros(2, 4)).shape == (2, 1, size, size + 1)


@pytest.mark.parametrize(("name", "shape"), KINDS)
def test_zero_rows_give_zero_gradients(name, shape):
    encoder, decoder = pair(name, shape, with_mask=True)
    x = torch.zeros(0, *shape, dtype=torch.float64)
    loss = encoder(x, None).sum() + decoder(torch.zeros(0, 3, dtype=torch.float64)).sum()
    loss.backward()
    for module in (encoder, decoder):
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()


@pytest.mark.parametrize("normalisation", [None, "layer"])
@pytest.mark.parametrize(("name", "shape"), KINDS)
def test_rows_do_not_see_each_other(name, shape, normalisation):
    config = type(SMALL[name])(hidden=(8,), normalisation=normalisation)
    encoder, decoder = pair(name, shape, config=config)
    x = torch.randn(5, *shape, dtype=torch.float64)
    z = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(decoder(z)[1:2], decoder(z[1:2]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "shape"), KINDS)
def test_gradients_reach_every_parameter_and_the_input(name, shape):
    # a smooth activation: no unit can be dead by chance
    options = {"hidden": (8,), "activation": "tanh"}
    if name != "mlp":
        options["channels"] = (4, 6)
    encoder, decoder = pair(name, shape, True, type(SMALL[name])(**options))
    x = torch.randn(4, *shape, dtype=torch.float64, requires_grad=True)
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (encoder(x).square().sum() + decoder(z).square().sum()).backward()
    assert x.grad.abs().sum() > 0
    assert z.grad.abs().sum() > 0
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "shape"), KINDS)
def test_the_mask_is_an_input_where_it_was_asked_for(name, shape):
    x = torch.zeros(2, *shape, dtype=torch.float64)
    hidden = torch.zeros_like(x, dtype=torch.bool)
    seeing, _ = pair(name, shape, with_mask=True)
    blind, _ = pair(name, shape, with_mask=False)
    assert not torch.equal(seeing(x, hidden), seeing(x, ~hidden))
    torch.testing.assert_close(seeing(x, ~hidden), seeing(x, None), rtol=0, atol=0)
    torch.testing.assert_close(blind(x, hidden), blind(x, None), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "shape"), KINDS)
def test_built_on_the_meta_device_and_filled_by_assignment(name, shape):
    encoder, decoder = pair(name, shape)
    with torch.device("meta"):
        empty = ENCODERS[name](SMALL[name], shape, False), DECODERS[name](SMALL[name], 3, shape)
    x = torch.randn(2, *shape, dtype=torch.float64)
    z = torch.randn(2, 3, dtype=torch.float64)
    for ours, hollow, given_ in ((encoder, empty[0], x), (decoder, empty[1], z)):
        assert all(parameter.is_meta for parameter in hollow.parameters())
        saved = {key: value.contiguous() for key, value in ours.state_dict().items()}
        hollow.load_state_dict(saved, assign=True)
        torch.testing.assert_close(hollow(given_), ours(given_), rtol=0, atol=0)


def test_images_run_channels_last_and_come_back_in_the_layout_of_the_data():
    encoder, decoder = pair("conv", (3, 8, 8))
    seen = {}

    def note(module, inputs):
        seen[module] = inputs[0].is_contiguous(memory_format=torch.channels_last)

    layers = [
        layer
        for layer in (*encoder.modules(), *decoder.modules())
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    for layer in layers:
        layer.register_forward_pre_hook(note)
        assert layer.weight.is_contiguous()
    encoder(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    out = decoder(torch.randn(2, 3, dtype=torch.float64))
    assert len(seen) == len(layers)
    assert all(seen.values())
    assert out.is_contiguous()


def test_large_images_are_halved_until_few_cells_are_left():
    encoder = ConvEncoder(ConvConfig(channels=(4,), hidden=(), max_cells=16), (1, 40, 40))
    assert encoder.out_features == 4 * 3 * 3


def test_a_linear_perceptron_has_no_hidden_layer():
    encoder = MLPEncoder(MLPConfig(hidden=()), (3, 2), with_mask=True)
    assert encoder.out_features == 12
    assert not list(encoder.parameters())
    decoder = MLPDecoder(MLPConfig(hidden=()), 4, (3, 2))
    assert [tuple(p.shape) for p in decoder.parameters()] == [(6, 4), (6,)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=5).map(tuple))
def test_the_default_network_takes_the_shape_it_was_chosen_for(shape):
    name = default_network(shape)
    assert ENCODERS[name](SMALL[name], shape).out_features == 8 or math.prod(shape) == 0


def test_default_networks_by_shape():
    assert default_network((100,)) == "mlp"
    assert default_network((3, 28, 28)) == "conv"
    assert default_network((1, 16, 16, 16)) == "conv"
    assert default_network((3, 2, 28)) == "mlp"
    assert default_network((12, 500)) == "conv1d"
    assert default_network((12, 7)) == "mlp"
    assert default_network((8, 27), class_axis=True) == "mlp"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPConfig(hidden=(0,)), "hidden: must be a tuple of whole numbers >= 1"),
        (lambda: MLPConfig(hidden=[16, 2.5]), r"hidden: .* got \(16, 2.5\)"),
        (lambda: MLPConfig(hidden=16), "hidden: must be a tuple"),
        (lambda: MLPConfig(activation="rleu"), "activation: must be one of 'relu'"),
        (lambda: MLPConfig(dropout=1.0), "dropout: must be between 0.0 and 0.99, got 1.0"),
        (lambda: MLPConfig(normalisation="batch"), "normalisation: must be one of None, 'layer'"),
        (lambda: ConvConfig(channels=()), "channels: must have at least one entry"),
        (lambda: ConvConfig(kernel_size=4), "kernel_size: must be an odd whole number"),
        (lambda: ConvConfig(max_cells=0), "max_cells: must be a whole number >= 1, got 0"),
        (lambda: ConvEncoder(ConvConfig(), (3, 28)), r"'conv' needs .* got shape \(3, 28\)"),
        (lambda: ConvDecoder(ConvConfig(), 2, (3, 3, 28)), "sides of at least 4.*choose 'mlp'"),
        (lambda: Conv1dEncoder(Conv1dConfig(), (3, 7)), "length of at least 8.*choose 'mlp'"),
        (lambda: Conv1dDecoder(Conv1dConfig(), 2, (30,)), r"needs \(C, L\)"),
    ],
)
def test_bad_options_and_shapes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_options_from_json_are_lists():
    assert MLPConfig(hidden=[32, 16]).hidden == (32, 16)
    assert ConvConfig(channels=[8]).channels == (8,)
    assert repr(MLPConfig(hidden=np.array([32, 16])).hidden) == "(32, 16)"


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    encoder = MLPEncoder(MLPConfig(hidden=(64,), dropout=0.5), (4,))
    x = torch.ones(1, 4)
    assert torch.equal(encoder.eval()(x), encoder(x))
    assert (encoder.train()(x) == 0).sum() > (encoder.eval()(x) == 0).sum()


def test_own_networks_are_tried_without_a_trace():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(0.5)))
    network[2].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert PlainTrunk(network, "a", (3,)).out_features == 4
    check_decoder(network, "a", (3,), (2, 2))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == [True, True, True, False, False]


def test_an_encoder_of_points_has_no_scale():
    trunk = MLPEncoder(MLPConfig(hidden=(5,)), (3,))
    latents = {"shared": 2, ("private", "a"): 4}
    points = ModalityEncoder(trunk, latents, scale=False)
    assert points.head.out_features == 6
    whole = ModalityEncoder(trunk, latents)
    with torch.no_grad():  # the rows of the locations
        rows = [0, 1, *range(4, 8)]
        points.head.weight.copy_(whole.head.weight[rows])
        points.head.bias.copy_(whole.head.bias[rows])
    x = torch.randn(7, 3)
    for name, value in points(x).items():
        assert value.shape == (7, 1, latents[name])
        torch.testing.assert_close(value[:, 0], whole(x)[name][:, 0])

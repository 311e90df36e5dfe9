"""Hierarchies that are made to be a linear-Gaussian truth, against its exact numbers.

MHVAE with two levels: z2 ~ N(0, I), z1 | z2 ~ N(A z2, 1 - A^2), so that z1 ~ N(0, I) is the
latent of the truth. What a modality says about z1 is a Gaussian, p(x_m | z1); about z2 modalities
are not independent, so a product of experts is exact for one subset at most: here all of them.

Nexus: u ~ N(0, I), z_m | u ~ N(C u, 1 - C^2), so that x_m has the shared loading C W_m and the
private one sqrt(1 - C^2) W_m. The training loss is no bound of that likelihood, see its module.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import multivae_core as mv
from multivae_core.testing import LinearGaussian
from multivae_core.testing.oracle import FEATURES, Oracle

__all__ = ["DOWN", "mhvae", "nexus"]

DOWN, UP = 0.8, 0.4
"""A of MHVAE and C of Nexus.

With a larger C the latents of three modalities, which Nexus draws one by one, depend too much on
each other given all data: at 0.6 the worst of 100 rows keeps 6 % of the samples, at 0.4 31 %.
"""


def bottom_of(signal):
    """Loadings of one latent with N(0, I), and the rule of its experts."""
    own = {"a": (1.2, 0.8, 1.0), "b": (1.0, 1.2, 0.8), "c": (0.8, 1.0, 1.2)}
    return LinearGaussian.orthogonal(
        FEATURES,
        3,
        signal={name: tuple(signal * value for value in own[name]) for name in own},
        noise={"a": 0.5, "b": np.linspace(0.2, 2.0, 6), "c": 30.0},
        seed=1,
    )


def created(model, truth, **options):
    linear = {"type": "mlp", "hidden": []}
    likelihood = {"type": "normal", "scale": "learned", "min_scale": 1e-6}
    own = {"encoder": linear, "decoder": linear, "likelihood": likelihood}
    return mv.create_model(
        model,
        truth.sample(400, seed=99),
        latent_dim=3,
        modalities=dict.fromkeys(FEATURES, own),
        dtype="float64",
        **options,
    )


def set_linear(layer, weight, bias):
    """Weight and bias of a layer; both may be numbers or arrays."""
    layer.weight.copy_(torch.as_tensor(np.asarray(weight)).expand_as(layer.weight))
    layer.bias.copy_(torch.as_tensor(np.asarray(bias)).expand_as(layer.bias))


def set_decoder(model, bottom, name):
    """The true loadings, on the model's scale."""
    transform, decoder = model.transforms[name], model.decoders[name]
    (layer,) = [m for m in decoder.network.modules() if isinstance(m, nn.Linear)]
    shift, scale = transform.shift, transform.scale
    layer.weight.copy_(torch.as_tensor(bottom.loadings[name]) / scale[:, None])
    layer.bias.copy_((torch.as_tensor(bottom.offsets[name]) - shift) / scale)
    noise = torch.as_tensor(bottom.noise[name]) / scale
    decoder.likelihood.scale.raw.copy_((noise - 1e-6).log())


def on_model_scale(model, name, affine):
    """Weight and bias of an affine map of data, for standardised data."""
    transform = model.transforms[name]
    weight = torch.as_tensor(affine.weight)
    return weight * transform.scale, weight @ transform.shift + torch.as_tensor(affine.bias)


def mhvae(factor=1.2, **further):
    """The truth, and a model that is the truth; experts have deviations times a factor."""
    truth = bottom_of(1.0)
    eye, none = np.eye(3), np.zeros((3, 3))
    heads = {name: nn.Linear(3, 6) for name in FEATURES}
    lower = {name: nn.Linear(6, 6) for name in FEATURES}
    networks = {
        "top": nn.ModuleDict(heads),
        "top_down": nn.ModuleList([nn.Linear(3, 3)]),
        "prior": nn.ModuleList([nn.Linear(3, 6)]),
        "posterior": nn.ModuleList([nn.ModuleDict(lower)]),
    }
    options = {"n_levels": 2, "channels": [3], "share": "none"} | further
    model = created("mhvae", truth, networks=networks, **options)
    experts = {name: truth.expert(name, "likelihood") for name in FEATURES}
    total = sum(1.0 / expert.variance for expert in experts.values())
    wider = 2.0 * np.log(factor)
    with torch.no_grad():
        set_linear(networks["top_down"][0], eye, 0.0)
        left = np.full(3, np.log(1.0 - DOWN**2))
        both = np.concatenate([DOWN * eye, none])
        set_linear(networks["prior"][0], both, np.concatenate([np.zeros(3), left]))
        for name, expert in experts.items():
            set_decoder(model, truth, name)
            for target, value in zip(
                (model.encoders[name].last.weight, model.encoders[name].last.bias),
                on_model_scale(model, name, expert),
                strict=True,
            ):
                target.copy_(value)
            said = 1.0 / expert.variance
            top = (1.0 + total * (1.0 - DOWN**2)) / (DOWN**2 * said)
            raw = np.concatenate([np.zeros(3), np.log(top) + wider])
            set_linear(heads[name], np.concatenate([eye / DOWN, none]), raw)
            raw = np.concatenate([np.zeros(3), np.log(expert.variance) + wider])
            set_linear(lower[name], np.block([[none, eye], [none, none]]), raw)
    return Oracle(truth=truth, model=model)


def nexus(factor=1.2, **further):
    """Likewise; the top posterior is about that of two modalities, for every subset."""
    bottom, left = bottom_of(1.5), 1.0 - UP**2
    truth = LinearGaussian(
        loadings={name: UP * loading for name, loading in bottom.loadings.items()},
        private={name: np.sqrt(left) * loading for name, loading in bottom.loadings.items()},
        offsets=bottom.offsets,
        noise=bottom.noise,
    )
    messages = {name: nn.Linear(3, 3) for name in FEATURES}
    down = {name: nn.Linear(3, 3) for name in FEATURES}
    networks = {
        "messages": nn.ModuleDict(messages),
        "top_encoder": nn.Linear(3, 6),
        "top_decoders": nn.ModuleDict(down),
    }
    scales = dict.fromkeys(FEATURES, float(np.sqrt(left)))
    options = {"msg_dim": 3, "top_scales": scales, "sample_bottom": True} | further
    model = created("nexus", truth, networks=networks, **options)
    eye, wider = np.eye(3), 2.0 * np.log(factor)
    gain = 2.0 * UP / left / (1.0 + 2.0 * UP**2 / left)
    spread = np.log(1.0 / (1.0 + UP**2 / left)) + wider
    with torch.no_grad():
        raw = np.concatenate([np.zeros(3), np.full(3, spread)])
        set_linear(networks["top_encoder"], np.concatenate([gain * eye, 0.0 * eye]), raw)
        for name in FEATURES:
            set_decoder(model, bottom, name)
            set_linear(messages[name], eye, 0.0)
            set_linear(down[name], UP * eye, 0.0)
            expert = bottom.expert(name, "posterior")
            weight, bias = on_model_scale(model, name, expert)
            head, raw = model.encoders[name].head, np.log(expert.variance) + wider
            head.weight.copy_(torch.cat([weight, torch.zeros_like(weight)]))
            head.bias.copy_(torch.cat([bias, torch.as_tensor(raw)]))
    return Oracle(truth=truth, model=model)

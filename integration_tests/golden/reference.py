"""The golden's formulas for three models in plain torch, without our library.

It reads a case's own keys and gives the loss without noise, so that options which no golden number
covers can be compared too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .case import Case

__all__ = ["loss"]

_LOG_2PI = math.log(2.0 * math.pi)


class _Plain:
    def __init__(self, case: Case, data: str) -> None:
        self.case, self.config = case, case.config
        self.names = case.order
        self.x = {name: case.tensors[f"x.{name}"] for name in self.names}
        every = torch.ones(case.rows, dtype=torch.bool)
        self.seen = {
            name: case.tensors[f"masks.{name}"].bool() if data == "incomplete" else every
            for name in self.names
        }
        sizes = {name: x[0].numel() for name, x in self.x.items()}
        usual = {name: max(sizes.values()) / size for name, size in sizes.items()}
        factors = self.config.get("rescale_factors") or usual
        rescaled = self.config.get("uses_likelihood_rescaling", False)
        self.factor = factors if rescaled else dict.fromkeys(self.names, 1.0)

    def network(self, key: str, value: Tensor) -> dict[str, Tensor]:
        spec, t = self.case.content["networks"][key], self.case.tensors
        hidden = value.flatten(1)
        for layer in spec["trunk"]:
            if layer["op"] == "tanh":
                hidden = hidden.tanh()
            else:
                hidden = hidden @ t[layer["weight"]].T + t[layer["bias"]]
        return {
            head: hidden @ t[each["weight"]].T + t[each["bias"]]
            for head, each in spec["heads"].items()
        }

    def encoded(self) -> dict[str, dict[str, Tensor]]:
        return {name: self.network(f"encoders.{name}", self.x[name]) for name in self.names}

    def distance(self, name: str, latent: Tensor) -> Tensor:
        """Minus the weighted log-likelihood of one modality where it is seen, (B,)."""
        out = self.network(f"decoders.{name}", latent)["recon"]
        out = out.view(-1, *self.x[name].shape[1:])
        given, x = self.case.content["modalities"][name], self.x[name]
        kind, scale = given["likelihood"], given.get("scale", 1.0)
        if kind == "normal":
            log_p = -0.5 * ((x - out) / scale) ** 2 - math.log(scale) - 0.5 * _LOG_2PI
        elif kind == "laplace":
            log_p = -(x - out).abs() / scale - math.log(2.0 * scale)
        elif kind == "bernoulli":
            log_p = -functional.binary_cross_entropy_with_logits(out, x, reduction="none")
        else:
            log_p = x * out.log_softmax(-1)
        total: Tensor = -self.factor[name] * log_p.flatten(1).sum(1) * self.seen[name]
        return total


def _product(means: list[Tensor], precisions: list[Tensor]) -> tuple[Tensor, Tensor]:
    total = torch.stack(precisions).sum(0)
    pull = torch.stack([m * t for m, t in zip(means, precisions, strict=True)]).sum(0)
    return pull / total, 1.0 / total


def _kl(mean: Tensor, variance: Tensor) -> Tensor:
    return 0.5 * (mean**2 + variance - 1.0 - variance.log()).sum(1)


def _mvae(plain: _Plain, arguments: dict[str, Any]) -> Tensor:
    config, names, rows = plain.config, plain.names, plain.case.rows
    warmup, epoch = config["warmup"], arguments.get("epoch", 1)
    beta = config.get("beta", 1.0)
    if epoch < warmup:
        beta *= (epoch - 1 + arguments.get("batch_ratio", 0)) / warmup
    subsets = [list(names)]
    if config.get("use_subsampling", True):
        subsets += [[name] for name in names]
        inner = [s for s in _subsets(names) if 2 <= len(s) < len(names)]
        if config.get("k", 0) not in (0, len(inner)):
            raise ValueError("the value is random")
        subsets += inner if config.get("k", 0) else []
    q, total = plain.encoded(), torch.zeros((), dtype=torch.float64)
    standard = torch.zeros(rows, plain.case.latent_dim, dtype=torch.float64)
    for subset in subsets:
        precisions = [(-q[m]["logvar"]).exp() * plain.seen[m][:, None] for m in subset]
        means = [q[m]["mu"] for m in subset]
        mean, variance = _product([*means, standard], [*precisions, standard + 1.0])
        each = beta * _kl(mean, variance)
        for m in subset:
            each = each + plain.distance(m, mean)
        some = torch.stack([plain.seen[m] for m in subset]).any(0)
        if bool(some.any()):
            total = total + each[some].mean()
    return total


def _mopoe(plain: _Plain, arguments: dict[str, Any]) -> Tensor:
    config, names, rows = plain.config, plain.names, plain.case.rows
    listed = config.get("subsets") or _subsets(names)
    listed = list(listed.values()) if isinstance(listed, dict) else listed
    q, beta = plain.encoded(), config.get("beta", 1.0)
    standard = torch.zeros(rows, plain.case.latent_dim, dtype=torch.float64)
    usable, losses = [], []
    for subset in listed:
        means = [q[m]["mu"] for m in subset]
        precisions = [(-q[m]["logvar"]).exp() for m in subset]
        if len(subset) == len(names):
            means, precisions = [*means, standard], [*precisions, standard + 1.0]
        mean, variance = _product(means, precisions)
        each = beta * _kl(mean, variance)
        for m in names:
            own = q[m].get("private_mu")
            latent = mean if own is None else torch.cat([mean, own], 1)
            each = each + plain.distance(m, latent)
        usable.append(torch.stack([plain.seen[m] for m in subset]).all(0).double())
        losses.append(each)
    weights = torch.stack(usable)
    total = (weights * torch.stack(losses)).sum(0) / weights.sum(0)
    for m in names:
        if "private_mu" in q[m]:
            private = _kl(q[m]["private_mu"], q[m]["private_logvar"].exp())
            total = total + beta * config.get("beta_style", 1.0) * private * plain.seen[m]
    return total.mean()


def _mmvae(plain: _Plain, arguments: dict[str, Any]) -> Tensor:
    """Without noise all K samples are equal: K and the estimator change no value."""
    family, names = plain.config["prior_and_posterior_dist"], plain.names

    def scale(raw: Tensor) -> Tensor:
        if family == "normal":
            return (0.5 * raw).exp()
        if family == "normal_with_softplus":
            return functional.softplus(raw) + 1e-6
        return raw.softmax(-1) * raw.shape[-1] + 1e-6

    def log_density(z: Tensor, mean: Tensor, width: Tensor) -> Tensor:
        away = (z - mean) / width
        if family == "laplace_with_softmax":
            return -(away.abs() + (2.0 * width).log()).sum(-1)
        return -(0.5 * away**2 + width.log() + 0.5 * _LOG_2PI).sum(-1)

    q, prior = plain.encoded(), scale(plain.case.tensors["prior.logvar"])
    count = torch.stack([plain.seen[m] for m in names]).sum(0).double()
    total = torch.zeros(plain.case.rows, dtype=torch.float64)
    for m in names:
        z = q[m]["mu"]
        densities = torch.stack([log_density(z, q[j]["mu"], scale(q[j]["logvar"])) for j in names])
        there = torch.stack([plain.seen[j] for j in names])
        mixture = torch.where(there, densities, -math.inf).logsumexp(0) - count.log()
        log_w = log_density(z, torch.zeros_like(z), prior) - mixture
        for j in names:
            log_w = log_w - plain.distance(j, z)
        total = total + torch.where(plain.seen[m], log_w, 0.0) / count
    return -total.sum()


def _subsets(names: tuple[str, ...]) -> list[list[str]]:
    count = len(names)
    return [[n for i, n in enumerate(names) if code >> i & 1] for code in range(1, 2**count)]


_LOSSES = {"MVAE": _mvae, "MoPoE": _mopoe, "MMVAE": _mmvae}


def loss(case: Case, data: str) -> float:
    """The loss without noise and with the weights as stored, in the golden's units."""
    arguments = case.content["forward_arguments"]
    return float(_LOSSES[case.model](_Plain(case, data), arguments))

"""A vector of attributes, any of which may be left open, as a product of experts.

With G the attributes of y that a row gives, the posterior is

    q(z | y_G) = N(z; 0, I) prod_{k in G} N(z; mu_k(y_k), diag 1/t_k(y_k)) / Z
    precision  T = 1 + sum_{k in G} t_k,      mean = sum_{k in G} t_k mu_k / T

(Vedantam et al. 2018, who ask "any digit, but large" in this way): N(0, I) where nothing is given,
and narrower with every attribute. An attribute that is left open is an element that was not
observed. Attribute k is the k-th entry along the first axis: a number, or one-hot classes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from multivae_core.config import config, positive
from multivae_core.data import Batch
from multivae_core.noise import NoiseSource

__all__ = ["AttributeExperts", "AttributePoEConfig", "AttributePoEEncoder", "withheld"]


@config
class AttributePoEConfig:
    """One expert per attribute, as the encoder of a modality of JMVAE or TELBO.

    In other models, and in a joint encoder, the features are the sum of those of the attributes
    that are given, and no product.

    Args:
        hidden: Sizes of the hidden layers of every attribute's network; one or more.
    """

    hidden: tuple[int, ...] = attrs.field(
        default=(64,),
        validator=attrs.validators.and_(
            attrs.validators.min_len(1), attrs.validators.deep_iterable(positive)
        ),
    )


class AttributePoEEncoder(nn.Module):
    """Features of every attribute, out of a network of its own.

    Args:
        config: Options.
        shape: Shape of the modality, attributes along the first axis.
        with_mask: Whether there are holes; they are left out either way.
    """

    def __init__(
        self, config: AttributePoEConfig, shape: tuple[int, ...], with_mask: bool = False
    ) -> None:
        super().__init__()
        self.count = shape[0]
        self.size = math.prod(shape[1:])
        sizes = (self.size, *config.hidden)
        self.layers = nn.ModuleList(_Linear(self.count, *pair) for pair in pairwise(sizes))
        self.out_features = config.hidden[-1]

    def each(self, values: Tensor) -> Tensor:
        """Features of every attribute, given or not, ``(R, K, F)``."""
        hidden = values.reshape(len(values), self.count, self.size)
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return hidden

    def given(self, values: Tensor, observed: Tensor | None) -> Tensor:
        """Which attributes are given, ``(R, K, 1)`` bool: those with no hole."""
        if observed is None:
            return torch.ones(len(values), self.count, 1, dtype=torch.bool, device=values.device)
        return observed.reshape(len(values), self.count, self.size).all(dim=2, keepdim=True)

    def forward(self, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute features ``(R, F)``, the sum of those of the attributes that are given."""
        return torch.where(self.given(values, observed), self.each(values), 0.0).sum(dim=1)


class AttributeExperts(nn.Module):
    """The product of the experts of the attributes that are given and of N(0, I).

    Args:
        trunk: Gives features of every attribute.
        latent_dim: Size D of the latent.
        counts: Whether the trunk sees log(1 + x), see `ModalityEncoder`.
    """

    def __init__(self, trunk: AttributePoEEncoder, latent_dim: int, counts: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.counts = counts
        self.head = _Linear(trunk.count, trunk.out_features, 2 * latent_dim)

    def forward(self, values: Tensor, observed: Tensor | None = None) -> dict[Any, Tensor]:
        """Return mean and log-variance of the shared latent, ``(R, 2, D)``."""
        seen = values.log1p() if self.counts else values
        mean, log_variance = self.head(self.trunk.each(seen)).chunk(2, dim=2)
        given = self.trunk.given(values, observed)
        # shares of the total precision, out of logarithms: none is too large for a number
        logs = functional.pad(torch.where(given, -log_variance, -math.inf), (0, 0, 0, 1))
        pull = (logs.softmax(dim=1)[:, :-1] * torch.where(given, mean, 0.0)).sum(dim=1)
        return {"shared": torch.stack([pull, -logs.logsumexp(dim=1)], dim=1)}


class _Linear(nn.Module):
    """A linear layer of its own for every attribute, ``(R, K, I)`` -> ``(R, K, O)``."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        limit = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-limit, limit))
        self.bias = nn.Parameter(torch.empty(count, outputs).uniform_(-limit, limit))

    def forward(self, values: Tensor) -> Tensor:
        return torch.einsum("rki,kio->rko", values, self.weight) + self.bias


def withheld(batch: Batch, names: list[str], rate: float, noise: NoiseSource) -> Batch:
    """Take attributes away at random, each of a row with a probability.

    Args:
        batch: What is seen.
        names: Modalities that are made of attributes.
        rate: The probability.
        noise: Source of the random numbers.
    """
    values, observed = dict(batch.values), dict(batch.observed)
    for name in names:
        own = values[name]
        keys = noise.uniform(("attributes", name), (1, batch.size, own.shape[1]))[0]
        kept = (keys >= rate).view(*keys.shape, *[1] * (own.ndim - 2)).expand_as(own)
        observed[name] = kept & observed[name] if name in observed else kept
        values[name] = torch.where(observed[name], own, 0.0)
    return batch.with_values(values, observed)

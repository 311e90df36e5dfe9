"""Rules that fuse what several modalities say about one latent into one posterior."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, cast

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import build, component, config, one_of, positive
from multivae_core.distributions import Distribution, Mixture, Normal
from multivae_core.errors import ConfigError

__all__ = [
    "Fusion",
    "MixtureConfig",
    "MixtureFusion",
    "MixtureOfProductsConfig",
    "MixtureOfProductsFusion",
    "PRIOR_EXPERT",
    "ProductConfig",
    "ProductFusion",
    "WeightedProductConfig",
    "WeightedProductFusion",
    "all_subsets",
    "fixed_subsets",
    "gaussian_fusion",
    "groups_of",
    "prior_joins",
    "subset_mixture",
]

PRIOR_EXPERT = ("always", "never", "largest", "full_set")
"""Where the prior N(0, I) is one more expert, see `prior_joins`."""

_LEAST_WEIGHT = 1e-6


class Fusion(nn.Module):
    """A rule that fuses Gaussian experts; subclasses write `fuse` alone.

    Args:
        config: The configuration of the rule.
        n_experts: Number of modalities M.
        latent_dim: Size D of the latent.
    """

    gaussian: ClassVar[bool] = True
    """Whether every group gets one Gaussian; models that need one per subset ask for it."""

    def __init__(self, config: Any, n_experts: int, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.n_experts = n_experts
        self.latent_dim = latent_dim

    @abstractmethod
    def fuse(self, experts: Normal, members: Tensor) -> Distribution:
        """Fuse the members of every group.

        Args:
            experts: ``(E, B, D)``; the M modalities and, where asked for, the prior N(0, I) as
                one more. Parameters of absent experts are finite and must have no influence.
            members: ``(S, B, E)`` bool, or ``(S, 1, E)`` where all rows are alike; every group
                has at least one member.

        Returns:
            A distribution over ``(S, B, D)``.
        """

    def forward(self, experts: Normal, present: Tensor) -> Distribution:
        """Fuse all that is present; the posterior is the prior where nothing is.

        Args:
            experts: ``(M, B, D)``.
            present: ``(B, M)`` bool, or ``(1, M)`` where all rows are alike.

        Returns:
            A distribution over ``(B, D)``.
        """
        fused = self._fused(experts, present[None], None)
        return fused[0] if isinstance(fused, Normal) else fused

    def groups(self, experts: Normal, groups: Tensor, prior: Tensor | None = None) -> Normal:
        """Fuse every group of modalities, for rules that give one Gaussian per group.

        Args:
            experts: ``(M, B, D)``.
            groups: ``(S, B, M)`` bool, subsets of what is present; or ``(S, 1, M)``.
            prior: ``(S, B)`` or ``(S, 1)`` bool: where N(0, I) joins as one more expert. It
                always joins where nothing else takes part.

        Returns:
            The posteriors, ``(S, B, D)``.
        """
        return cast(Normal, self._fused(experts, groups, prior))

    def _fused(self, experts: Normal, groups: Tensor, prior: Tensor | None) -> Distribution:
        alone = ~groups.any(dim=2)
        if prior is not None or bool(alone.any()):
            standard = torch.zeros_like(experts.mean[:1])
            experts = Normal(
                torch.cat([experts.mean, standard]), torch.cat([experts.log_variance, standard])
            )
            joins = alone if prior is None else prior | alone
            groups = torch.cat([groups, joins[..., None]], dim=2)
        return self.fuse(experts, groups)


@config
class ProductConfig:
    """Product of Gaussian experts; it has no options."""


class ProductFusion(Fusion):
    """Precision-weighted product (Hinton 2002; Wu & Goodman 2018, eq. 3)."""

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """See `Fusion.fuse`."""
        precision = (-experts.log_variance).exp()
        return _product(precision, precision * experts.mean, members)


def _product(precision: Tensor, pull: Tensor, members: Tensor) -> Normal:
    return Normal.natural(*_sums(precision, pull, members))


def _sums(precision: Tensor, pull: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Add up over the members: one batched matrix product for all subsets.

    Args:
        precision: ``(E, B, D)``.
        pull: Precision times mean, ``(E, B, D)``.
        members: ``(S, B, E)`` bool, or ``(S, 1, E)``, the same in every row.

    Returns:
        The sums of both, ``(S, B, D)``.
    """
    both = torch.stack([precision, pull], dim=1)
    if members.shape[1] == 1:
        total = torch.tensordot(members[:, 0].to(both.dtype), both, dims=1)
        precision, pull = total.unbind(dim=1)
        return precision, pull
    rows = both.permute(1, 2, 0, 3)
    total = torch.matmul(members.to(both.dtype).transpose(0, 1), rows)
    precision, pull = total.transpose(1, 2).unbind()
    return precision, pull


@config
class WeightedProductConfig:
    """Generalised product: every expert's precision has a weight for every dimension.

    Args:
        weighting: ``softmax`` learns weights that sum to 1 over the experts; ``clamp`` learns
            them between 0 and 1; ``fixed`` keeps what is loaded.
        renormalise: Whether the weights of the experts that take part are scaled to sum to their
            sum over all experts, row by row, so that holes do not weaken the product; the
            prior, where it is one more expert, is not weighted.
    """

    weighting: str = attrs.field(default="softmax", validator=one_of("softmax", "clamp", "fixed"))
    renormalise: bool = True


class WeightedProductFusion(Fusion):
    """Generalised product of experts (Cao & Fleet 2014)."""

    def __init__(self, config: WeightedProductConfig, n_experts: int, latent_dim: int) -> None:
        super().__init__(config, n_experts, latent_dim)
        start = 0.0 if config.weighting == "softmax" else 1.0 / n_experts
        weights = torch.full((n_experts, latent_dim), start)
        self.raw_weights = nn.Parameter(weights, requires_grad=config.weighting != "fixed")

    def weights(self) -> Tensor:
        """Weight of every expert in every dimension, ``(M, D)``."""
        if self.config.weighting == "softmax":
            return self.raw_weights.softmax(dim=0)
        if self.config.weighting == "clamp":
            # not 0: a product of experts without any weight has no precision
            return self.raw_weights.clamp(_LEAST_WEIGHT, 1.0)
        return self.raw_weights

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """See `Fusion.fuse`."""
        weights = self.weights()
        count = len(weights)
        own, prior = members[..., :count], members[..., count:].sum(dim=2, keepdim=True)
        precision = weights[:, None] * (-experts.log_variance[:count]).exp()
        total, pull = _sums(precision, precision * experts.mean[:count], own)
        if self.config.renormalise:
            seen = own.to(weights.dtype) @ weights
            share = weights.sum(dim=0) / torch.where(seen > 0, seen, 1.0)
            total, pull = share * total, share * pull
        # the prior, where it takes part, has mean 0 and precision 1 whatever the weights are
        total = total + prior
        return Normal(pull / total, -total.log())


@config
class MixtureConfig:
    """Mixture of experts; it has no options."""


class MixtureFusion(Fusion):
    """Uniform mixture of the experts that are there (Shi et al. 2019)."""

    gaussian = False

    def fuse(self, experts: Normal, members: Tensor) -> Mixture:
        """See `Fusion.fuse`; there is one group."""
        return Mixture(experts, _uniform(_only(members), experts.mean.dtype))


@config
class MixtureOfProductsConfig:
    """Mixture over subsets; every subset is fused by another rule.

    Args:
        inner: The rule within a subset.
        prior_expert: In which subsets the prior N(0, I) is one more expert.
        max_subsets: With more non-empty subsets than this, a fixed choice of so many takes
            their place: the full one, the single ones, and random ones.
    """

    inner: Any = component("fusions", default="product")
    prior_expert: str = attrs.field(default="largest", validator=one_of(*PRIOR_EXPERT))
    max_subsets: int = attrs.field(default=255, validator=positive)


class MixtureOfProductsFusion(Fusion):
    """Uniform mixture over all non-empty subsets (Sutter et al. 2021, eq. 6)."""

    gaussian = False
    subsets: Tensor

    def __init__(self, config: MixtureOfProductsConfig, n_experts: int, latent_dim: int) -> None:
        super().__init__(config, n_experts, latent_dim)
        self.inner = gaussian_fusion(config.inner, n_experts, latent_dim, "inner")
        subsets = fixed_subsets(n_experts, config.max_subsets)
        self.register_buffer("subsets", subsets, persistent=False)

    def fuse(self, experts: Normal, members: Tensor) -> Mixture:
        """See `Fusion.fuse`; there is one group."""
        present = _only(members)[:, : self.n_experts]
        return subset_mixture(
            self.inner, experts[: self.n_experts], present, self.subsets, self.config.prior_expert
        )


def gaussian_fusion(config: Any, n_experts: int, latent_dim: int, option: str) -> Fusion:
    """Build a rule that gives one Gaussian per subset; refuse any other.

    Args:
        config: The configuration of the rule.
        n_experts: Number of modalities M.
        latent_dim: Size D of the latent.
        option: Where the configuration comes from, for the message.
    """
    fusion: Fusion = build("fusions", config, n_experts, latent_dim)
    if not fusion.gaussian:
        raise ConfigError(
            "must give one Gaussian per subset, a mixture does not; choose 'product'", option
        )
    return fusion


def all_subsets(n: int) -> Tensor:
    """All non-empty subsets of n modalities, ``(2^n - 1, n)`` bool; the full one is last."""
    codes = torch.arange(1, 2**n)
    return ((codes[:, None] >> torch.arange(n)) & 1).bool()


def fixed_subsets(n: int, most: int) -> Tensor:
    """About so many non-empty subsets, ``(S, n)`` bool, each once, the same ones every time.

    All of them where they are no more; otherwise the single ones, the full one, and as many
    random ones as there is room for.
    """
    if n < 31 and 2**n - 1 <= most:
        return all_subsets(n)
    certain = torch.cat([torch.eye(n), torch.ones(1, n)]).bool()
    generator = torch.Generator().manual_seed(n)
    drawn = torch.rand(max(most - n - 1, 0), n, generator=generator, device="cpu") < 0.5
    sizes = drawn.sum(dim=1)
    # a subset that is listed twice would count twice in a uniform mixture
    further = drawn[(sizes > 1) & (sizes < n)].unique(dim=0)
    return torch.cat([certain, further.to(certain.device)])


def groups_of(subsets: Tensor, present: Tensor) -> Tensor:
    """What a row has of every subset.

    Args:
        subsets: ``(S, M)`` or ``(S, B, M)`` bool.
        present: ``(B, M)`` bool.

    Returns:
        ``(S, B, M)`` bool.
    """
    return (subsets[:, None] if subsets.ndim == 2 else subsets) & present


def prior_joins(rule: str, groups: Tensor, present: Tensor) -> Tensor:
    """Where the prior N(0, I) is one more expert.

    Args:
        rule: ``always``; ``never``; ``largest``: in the product of all that a row has, so that a
            row with modalities A is treated as complete data on A; ``full_set``: in the product
            of all M modalities alone (the rule of the authors' code for MoPoE).
        groups: ``(S, B, M)`` bool.
        present: ``(B, M)`` bool.

    Returns:
        ``(S, B)`` bool.
    """
    if rule == "largest":
        return (groups == present).all(dim=2)
    if rule == "full_set":
        return groups.all(dim=2)
    return torch.full(groups.shape[:2], rule == "always", device=present.device)


def subset_mixture(
    fusion: Fusion, experts: Normal, present: Tensor, subsets: Tensor, prior_expert: str
) -> Mixture:
    """Fuse every subset and mix, uniformly, those that a row has in full.

    A row that has none of the subsets in full mixes what it has of each of them.

    Args:
        fusion: The rule within a subset.
        experts: ``(M, B, D)``.
        present: ``(B, M)`` bool.
        subsets: ``(S, M)`` or ``(S, B, M)`` bool.
        prior_expert: See `prior_joins`.
    """
    groups = groups_of(subsets, present)
    wanted = subsets[:, None] if subsets.ndim == 2 else subsets
    usable = (groups == wanted).all(dim=2)
    usable = torch.where(usable.any(dim=0), usable, groups.any(dim=2))
    fused = fusion.groups(experts, groups, prior_joins(prior_expert, groups, present))
    weights = _uniform(usable.T, experts.mean.dtype)
    return Mixture(fused, weights.expand(experts.mean.shape[1], -1))


def _only(members: Tensor) -> Tensor:
    if members.shape[0] != 1:
        raise ConfigError(
            "a mixture gives one posterior per row, not one per subset; choose a fusion that"
            " gives a Gaussian for every subset, for example 'product'"
        )
    return members[0]


def _uniform(usable: Tensor, dtype: torch.dtype) -> Tensor:
    """Equal weights over the usable components, ``(B, S)``; over all where none is."""
    usable = usable | ~usable.any(dim=1, keepdim=True)
    return usable.to(dtype) / usable.sum(dim=1, keepdim=True)

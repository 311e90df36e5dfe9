"""Rules that fuse what several modalities say about one latent into one posterior."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import build, component, config, one_of, positive
from multivae_core.distributions import Distribution, Mixture, Normal
from multivae_core.errors import ConfigError
from multivae_core.subsets import PRIOR_EXPERT, fixed_subsets, groups_of, prior_joins

__all__ = [
    "Fusion",
    "MixtureConfig",
    "MixtureFusion",
    "MixtureOfProductsConfig",
    "MixtureOfProductsFusion",
    "ProductConfig",
    "ProductFusion",
    "WeightedProductConfig",
    "WeightedProductFusion",
    "build_fusion",
    "gaussian_fusion",
    "member_sums",
    "mixture_weights",
    "one_group",
    "power_product",
    "subset_mixture",
    "with_prior_expert",
]

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

    def forward(
        self, experts: Normal, present: Tensor, prior_expert: str = "never"
    ) -> Distribution:
        """Fuse all that is present; the posterior is the prior where nothing is.

        Args:
            experts: ``(M, B, D)``.
            present: ``(B, M)`` bool, or ``(1, M)`` where all rows are alike.
            prior_expert: Where N(0, I) joins as one more expert, see `prior_joins`.

        Returns:
            A distribution over ``(B, D)``.
        """
        joins = prior_joins(prior_expert, present[None], present)
        fused = self._fused(experts, present[None], None if prior_expert == "never" else joins)
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
        # a mixture has as many components, and draws, whatever other rows have
        if prior is not None or not self.gaussian or bool(alone.any()):
            experts = with_prior_expert(experts)
            joins = alone if prior is None else prior | alone
            groups = torch.cat([groups, joins[..., None]], dim=2)
        return self.fuse(experts, groups)


@config
class ProductConfig:
    """Product of Gaussian experts.

    Args:
        prior_expert: Whether N(0, I) is one more expert in every product, whatever a model asks.
    """

    prior_expert: bool = False


class ProductFusion(Fusion):
    """Precision-weighted product (Hinton 2002; Wu & Goodman 2018, eq. 3)."""

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """See `Fusion.fuse`."""
        if self.config.prior_expert:
            experts = with_prior_expert(experts[: self.n_experts])
            members = nn.functional.pad(members[..., : self.n_experts], (0, 1), value=True)
        return power_product(experts, members)


def power_product(experts: Normal, powers: Tensor) -> Normal:
    """Product of experts, each to a power; with powers that sum to 1 their geometric mean.

    Args:
        experts: ``(E, B, D)``.
        powers: ``(S, B, E)``, not below 0 and not all 0, bool or numbers; or ``(S, 1, E)``.

    Returns:
        The products, normalised, ``(S, B, D)``.
    """
    precision = (-experts.log_variance).exp()
    return Normal.natural(*member_sums([precision, precision * experts.mean], powers))


def with_prior_expert(experts: Normal) -> Normal:
    """The experts and, after them, the prior N(0, I): ``(M, B, D)`` -> ``(M + 1, B, D)``."""
    mean, log_variance = experts.mean, experts.log_variance
    nothing = torch.zeros_like(mean[:1])
    return Normal(torch.cat([mean, nothing]), torch.cat([log_variance, nothing]))


def member_sums(parts: Sequence[Tensor], members: Tensor) -> tuple[Tensor, ...]:
    """Add up over the members: one batched matrix product for all parts and subsets.

    Args:
        parts: What to add up, each ``(E, B, D)``.
        members: ``(S, B, E)`` bool or weights, or ``(S, 1, E)``, the same in every row.

    Returns:
        The sum of each, ``(S, B, D)``.
    """
    both = torch.stack([*parts], dim=1)
    if members.shape[1] == 1:
        total: Tensor = torch.tensordot(members[:, 0].to(both.dtype), both, dims=1)
        return total.unbind(dim=1)
    rows = both.permute(1, 2, 0, 3)
    total = torch.matmul(members.to(both.dtype).transpose(0, 1), rows)
    return total.transpose(1, 2).unbind()


@config
class WeightedProductConfig:
    """Generalised product: every expert's precision has a weight for every dimension.

    Args:
        weighting: ``softmax`` learns weights that sum to 1 over the experts; ``clamp`` learns
            them between 0 and 1; ``fixed`` keeps what is loaded.
        renormalise: Whether the weights of the experts that take part are scaled to sum to their
            sum over all experts, row by row, so that holes do not weaken the product.
        per_dim: Whether an expert has a weight for every dimension; otherwise one for all.
        weigh_prior: Whether the prior, where it is one more expert, takes part in the softmax,
            with a logit that stays 0; otherwise its weight is 1 beside theirs.
    """

    weighting: str = attrs.field(default="softmax", validator=one_of("softmax", "clamp", "fixed"))
    renormalise: bool = True
    per_dim: bool = True
    weigh_prior: bool = False

    def __attrs_post_init__(self) -> None:
        if self.weigh_prior and not (self.weighting == "softmax" and self.renormalise):
            raise ConfigError(
                "needs weights that sum to 1 over what takes part; set weighting='softmax' and"
                " renormalise=True, or leave it out",
                "weigh_prior",
            )


class WeightedProductFusion(Fusion):
    """Generalised product of experts (Cao & Fleet 2014)."""

    def __init__(self, config: WeightedProductConfig, n_experts: int, latent_dim: int) -> None:
        super().__init__(config, n_experts, latent_dim)
        start = 0.0 if config.weighting == "softmax" else 1.0 / n_experts
        weights = torch.full((n_experts, latent_dim if config.per_dim else 1), start)
        self.raw_weights = nn.Parameter(weights, requires_grad=config.weighting != "fixed")

    def weights(self, prior: bool = False) -> Tensor:
        """Weight of every expert in every dimension, ``(M, D)`` or ``(M, 1)``.

        Args:
            prior: Whether N(0, I) is weighted as one more expert, the last one.
        """
        if self.config.weighting == "softmax":
            raw = self.raw_weights
            return (torch.cat([raw, torch.zeros_like(raw[:1])]) if prior else raw).softmax(dim=0)
        if self.config.weighting == "clamp":
            # not 0: a product of experts without any weight has no precision
            return cast(Tensor, _Clamp.apply(self.raw_weights))  # type: ignore[no-untyped-call]
        return self.raw_weights

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """See `Fusion.fuse`."""
        weights = self.weights(self.config.weigh_prior and members.shape[2] > self.n_experts)
        count = len(weights)
        own, prior = members[..., :count], members[..., count:].sum(dim=2, keepdim=True)
        precision = weights[:, None] * (-experts.log_variance[:count]).exp()
        total, pull = member_sums([precision, precision * experts.mean[:count]], own)
        if self.config.renormalise:
            seen = own.to(weights.dtype) @ weights
            share = weights.sum(dim=0) / torch.where(seen > 0, seen, 1.0)
            total, pull = share * total, share * pull
        # a prior without a weight adds mean 0 and precision 1 whatever the weights are
        total = total + prior
        return Normal(pull / total, -total.log())


class _Clamp(torch.autograd.Function):
    """Bring weights into their range; one that left it feels what leads back, and learns on."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> Tensor:
        ctx.save_for_backward(raw)
        return raw.clamp(_LEAST_WEIGHT, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (raw,) = ctx.saved_tensors
        outward = torch.where(gradient > 0, raw < _LEAST_WEIGHT, raw > 1.0)
        return torch.where(outward, 0.0, gradient)


@config
class MixtureConfig:
    """Mixture of experts; it has no options."""


class MixtureFusion(Fusion):
    """Uniform mixture of the experts that are there (Shi et al. 2019)."""

    gaussian = False

    def fuse(self, experts: Normal, members: Tensor) -> Mixture:
        """See `Fusion.fuse`; there is one group."""
        return Mixture(experts, mixture_weights(one_group(members), experts.mean.dtype))


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
        present = one_group(members)[:, : self.n_experts]
        return subset_mixture(
            self.inner, experts[: self.n_experts], present, self.subsets, self.config.prior_expert
        )


def build_fusion(config: Any, n_experts: int, latent_dim: int, option: str) -> Fusion:
    """Build a rule; what it refuses is told under the option that asked for it.

    Args:
        config: The configuration of the rule.
        n_experts: Number of modalities M.
        latent_dim: Size D of the latent.
        option: Where the configuration comes from, for the message.
    """
    try:
        fusion: Fusion = build("fusions", config, n_experts, latent_dim)
    except ConfigError as error:
        raise error.under(option) from error
    return fusion


def gaussian_fusion(config: Any, n_experts: int, latent_dim: int, option: str) -> Fusion:
    """Build a rule that gives one Gaussian per subset; refuse any other; see `build_fusion`."""
    fusion = build_fusion(config, n_experts, latent_dim, option)
    if not fusion.gaussian:
        raise ConfigError(
            "must give one Gaussian per subset, a mixture does not; choose 'product'", option
        )
    return fusion


def subset_mixture(
    fusion: Fusion, experts: Normal, present: Tensor, subsets: Tensor, prior_expert: str,
    logits: Tensor | None = None,
) -> Mixture:  # fmt: skip
    """Fuse every subset and mix those that a row has in full.

    A row that has none of the subsets in full mixes what it has of each of them.

    Args:
        fusion: The rule within a subset.
        experts: ``(M, B, D)``.
        present: ``(B, M)`` bool.
        subsets: ``(S, M)`` or ``(S, B, M)`` bool.
        prior_expert: See `prior_joins`.
        logits: ``(S,)``, of which the weights are the softmax over those that are mixed; None:
            equal weights.
    """
    groups = groups_of(subsets, present)
    wanted = subsets[:, None] if subsets.ndim == 2 else subsets
    usable = (groups == wanted).all(dim=2)
    usable = torch.where(usable.any(dim=0), usable, groups.any(dim=2))
    fused = fusion.groups(experts, groups, prior_joins(prior_expert, groups, present))
    weights = mixture_weights(usable.T, experts.mean.dtype, logits)
    return Mixture(fused, weights.expand(experts.mean.shape[1], -1))


def one_group(members: Tensor) -> Tensor:
    """The members of the only group, ``(1, B, E)`` -> ``(B, E)``; refuse several groups."""
    if members.shape[0] != 1:
        raise ConfigError(
            "a mixture gives one posterior per row, not one per subset; choose a fusion that"
            " gives a Gaussian for every subset, for example 'product'"
        )
    return members[0]


def mixture_weights(usable: Tensor, dtype: torch.dtype, logits: Tensor | None = None) -> Tensor:
    """Weights over the usable components, ``(B, S)``; over all where none is."""
    usable = usable | ~usable.any(dim=1, keepdim=True)
    if logits is not None:
        return torch.where(usable, logits, -math.inf).softmax(dim=1)
    return usable.to(dtype) / usable.sum(dim=1, keepdim=True)

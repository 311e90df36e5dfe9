"""Rules without networks: Wasserstein barycentre, dependent experts, Hellinger pool.

The experts of a group S, m = |S|, are N(mu_i, s_i^2) in every dimension; w_i > 0 are weights.

Barycentre: argmin_q sum_i w_i W_2(q, q_i)^2, with weights that sum to 1 over S:

    mean = sum_i w_i mu_i,      standard deviation = sum_i w_i s_i

Dependent experts: their errors have the covariance Sigma_ij = rho s_i s_j, i != j, and

    precision = 1' Sigma^-1 1,      mean = 1' Sigma^-1 mu / precision

Hellinger pool: (sum_i w_i q_i^(1/2))^2, normalised. A pair i, j gives the Gaussian (q_i q_j)^(1/2)
with the mass S_ij, its Bhattacharyya coefficient, a product over all dimensions:

    v_ij = 2 v_i v_j / (v_i + v_j),     mu_ij = (mu_i v_j + mu_j v_i) / (v_i + v_j)
    S_ij = prod_d (v_ij / (v_i v_j)^(1/2))^(1/2) exp(-(mu_i - mu_j)^2 / (4 (v_i + v_j)))

so that the pool is a mixture of m (m + 1) / 2 Gaussians of weight w_i w_j S_ij, twice that for
i < j: the rule ``hellinger_mixture``. The rule ``hellinger`` is the Gaussian of its moments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multivae_core.config import config
from multivae_core.distributions import Mixture, Normal
from multivae_core.errors import ConfigError
from multivae_core.fusion import Fusion, member_sums, one_group

__all__ = [
    "BarycentreConfig",
    "BarycentreFusion",
    "DependentExpertsConfig",
    "DependentExpertsFusion",
    "HellingerConfig",
    "HellingerFusion",
    "HellingerMixtureConfig",
    "HellingerMixtureFusion",
    "WeightedConfig",
    "taking_part",
]


@config
class WeightedConfig:
    """Options of a rule with fixed weights.

    Args:
        weights: A weight above 0 for every modality, in the order of their sorted names, of which
            those of the members count; None: equal ones. N(0, I), where it is a member, has their
            mean.
    """

    weights: list[float] | None = None

    def __attrs_post_init__(self) -> None:
        if self.weights is not None and not all(0 < w < math.inf for w in self.weights):
            raise ConfigError(f"must be numbers above 0, got {self.weights}", "weights")


class _WeightedFusion(Fusion):
    """A rule with fixed weights."""

    def __init__(self, config: WeightedConfig, n_experts: int, latent_dim: int) -> None:
        super().__init__(config, n_experts, latent_dim)
        own = [1.0] * n_experts if config.weights is None else config.weights
        if len(own) != n_experts:
            raise ConfigError(
                f"there are {n_experts} modalities, got {len(own)} weights; give one for each",
                "weights",
            )
        self._log_weights = [math.log(weight) for weight in [*own, sum(own) / n_experts]]

    def log_weights(self, experts: Normal) -> Tensor:
        """Logarithms of the weights of all experts, ``(E,)``."""
        return experts.mean.new_tensor(self._log_weights[: len(experts.mean)])


@config
class BarycentreConfig(WeightedConfig):
    """Options of the barycentre: those of `WeightedConfig`."""


class BarycentreFusion(_WeightedFusion):
    """Wasserstein-2 barycentre (Agueh & Carlier 2011; Qiu et al. 2025).

    Its deviation is a mean of the experts': more modalities do not sharpen the posterior.
    """

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """See `Fusion.fuse`."""
        experts = taking_part(experts, members)
        own = self.log_weights(experts).expand(members.shape)
        share = torch.where(members, own, -math.inf).softmax(dim=2)
        mean, deviation = member_sums([experts.mean, (0.5 * experts.log_variance).exp()], share)
        return Normal(mean, 2.0 * deviation.log())


@config
class DependentExpertsConfig:
    """Options of the consensus of dependent experts.

    Args:
        rho: Correlation of the errors of any two experts, above -1 / (M - 1) and below 1; 0 is
            the product. N(0, I), where it is a member, is an independent expert.
    """

    rho: float = 0.4


class DependentExpertsFusion(Fusion):
    """Consensus of dependent experts (Mancisidor et al. 2025) with one correlation for all.

    Where rho exceeds the ratio of two deviations the wider expert's weight is negative, and the
    mean lies outside what the two say.
    """

    def __init__(self, config: DependentExpertsConfig, n_experts: int, latent_dim: int) -> None:
        super().__init__(config, n_experts, latent_dim)
        least = -1.0 / max(n_experts - 1, 1)
        if not least < config.rho < 1.0:
            raise ConfigError(
                f"{n_experts} experts can have a common correlation above {least:.4g} and below 1,"
                f" got {config.rho}; choose one between",
                "rho",
            )

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """See `Fusion.fuse`."""
        experts = taking_part(experts, members)
        prior = members[..., self.n_experts :].any(dim=2, keepdim=True)
        own, among = experts[: self.n_experts], members[..., : self.n_experts]
        inverse = (-0.5 * own.log_variance).exp()
        precision, scaled = inverse.square(), inverse * own.mean
        first, second, pull, cross = member_sums(
            [inverse, precision, scaled, inverse * scaled], among
        )
        # Sigma^-1 between the inverse deviations: 1 / (1 + (m-1) rho) along their mean and
        # 1 / (1 - rho) across it, which leaves no difference of large numbers
        count = among.sum(dim=2, keepdim=True).clamp_min(1).to(first.dtype)
        along = first / (count * (1.0 + (count - 1) * self.config.rho))
        spread, lean = second - first * first / count, cross - first * pull / count
        across = 1.0 - self.config.rho
        return Normal.natural(
            spread.clamp_min(0.0) / across + along * first + prior,
            lean / across + along * pull,
        )


@config
class HellingerConfig(WeightedConfig):
    """Options of the moments of the Hellinger pool: those of `WeightedConfig`."""


class HellingerFusion(_WeightedFusion):
    """Moments of the Hellinger pool (Vo & Valera 2026).

    The masses of pairs are products over all dimensions: in many of them, experts that disagree
    have none, and the rule becomes the moments of a mixture of experts.
    """

    def fuse(self, experts: Normal, members: Tensor) -> Normal:
        """See `Fusion.fuse`."""
        experts = taking_part(experts, members)
        pairs, share = _pool(experts, members, self.log_weights(experts))
        # about a point between the experts, so that little is lost in the difference of squares
        centre = experts.mean.mean(dim=0).detach()
        moved = pairs.mean - centre
        mean, square, within = member_sums([moved, moved.square(), pairs.variance], share)
        between = (square - mean.square()).clamp_min(0.0)
        return Normal(mean + centre, (within + between).log())


@config
class HellingerMixtureConfig(WeightedConfig):
    """Options of the Hellinger pool: those of `WeightedConfig`."""


class HellingerMixtureFusion(_WeightedFusion):
    """The Hellinger pool itself, a mixture whose weights depend on the experts.

    Samples carry no gradient of the weights: an objective sums over the components.
    """

    gaussian = False

    def fuse(self, experts: Normal, members: Tensor) -> Mixture:
        """See `Fusion.fuse`; there is one group."""
        one_group(members)
        experts = taking_part(experts, members)
        pairs, share = _pool(experts, members, self.log_weights(experts))
        return Mixture(pairs, share[0])


def taking_part(experts: Normal, members: Tensor) -> Normal:
    """The experts, with N(0, I) for those that no group of their row has.

    Whatever they were, nothing of them then overflows into a sum or a gradient.

    Args:
        experts: ``(E, B, D)``.
        members: ``(S, B, E)`` bool, or ``(S, 1, E)``.
    """
    used = members.any(dim=0).T[..., None]
    mean = torch.where(used, experts.mean, 0.0)
    return Normal(mean, torch.where(used, experts.log_variance, 0.0))


def _pool(experts: Normal, members: Tensor, log_weights: Tensor) -> tuple[Normal, Tensor]:
    """The Gaussians of all pairs, ``(P, B, D)``, and their shares in each group, ``(S, B, P)``."""
    first, second = torch.triu_indices(*[members.shape[2]] * 2, device=members.device)
    one, other = experts[first], experts[second]
    narrower = other.log_variance - one.log_variance
    total = torch.logaddexp(one.log_variance, other.log_variance)
    log_variance = math.log(2.0) + one.log_variance + other.log_variance - total
    # the weight of the first mean is v_j / (v_i + v_j)
    mean = torch.lerp(other.mean, one.mean, narrower.sigmoid())
    distance = (one.mean - other.mean).square() * (-total).exp()
    overlap = math.log(2.0) + 0.5 * (one.log_variance + other.log_variance) - total
    mass = 0.5 * (overlap - 0.5 * distance).sum(dim=2)
    weight = log_weights[first] + log_weights[second]
    weight = torch.where(first == second, weight, weight + math.log(2.0))
    both = members[..., first] & members[..., second]
    share = torch.where(both, mass.T + weight, -math.inf).softmax(dim=2)
    return Normal(mean, log_variance), share

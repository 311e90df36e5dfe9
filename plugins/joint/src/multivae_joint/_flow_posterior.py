"""Posteriors that are a Gaussian, a flow, or a product of flows, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multivae_core.data import Batch
from multivae_core.distributions import Distribution
from multivae_core.noise import NoiseSource, RowNoise
from multivae_core.posteriors import Draw, Latents, Posterior
from multivae_core.priors import Prior
from multivae_joint._flows import FlowExperts, mixture_log_prob
from multivae_joint._sampling import HMC, Sampled, log_target, resample

__all__ = ["FlowPosterior", "FlowProposal"]

_ENOUGH = 5.0


class FlowProposal(Posterior):
    """A Gaussian in rows without members, in others the uniform mixture of their flows.

    Args:
        gaussian: Over ``(B, D)``; the prior in rows of which nothing is seen.
        experts: The flows.
        members: ``(B, M)`` bool.
    """

    def __init__(self, gaussian: Distribution, experts: FlowExperts, members: Tensor) -> None:
        self.gaussian = gaussian
        self.experts = experts
        self.members = members

    def draw(self, n: int, noise: NoiseSource) -> Draw:
        """See `Posterior.draw`; the density is that of the proportions that were realised."""
        size = self.gaussian.mean.shape[1]
        drawn, chosen = self.experts.mixture(self.members, n, noise, "shared", size)
        some = self.members.any(dim=1)
        other, _ = self.gaussian.draw(n, noise, ("shared", "gaussian"))
        z = torch.where(some[:, None], drawn, other)
        numbers = torch.arange(self.members.shape[1], device=chosen.device)
        realised = (chosen[..., None] == numbers).to(z.dtype).mean(dim=0)
        each = self.experts.log_probs(z, realised > 0)
        mixed = mixture_log_prob(each, realised)
        return Draw(
            latents={"shared": z}, log_q=torch.where(some, mixed, self.gaussian.log_prob(z))
        )

    def mean(self) -> Latents:
        """See `Posterior.mean`; a proposal is for drawing."""
        raise NotImplementedError("a proposal is drawn from; ask the posterior for its mean")


class FlowPosterior(FlowProposal):
    """A Gaussian, a flow, or a product of flows, by the number of members of a row.

    Args:
        gaussian: Over ``(B, D)``.
        experts: The flows.
        members: ``(B, M)`` bool.
        batch: What is seen; its row numbers make the draws of a mean.
        prior: The prior; see the option ``subset_posterior``.
        options: The model's: sampler, subset_posterior, candidates, point, n_mean.
        chain: The sampler of products.
    """

    def __init__(
        self,
        gaussian: Distribution,
        experts: FlowExperts,
        members: Tensor,
        batch: Batch,
        prior: Prior,
        options: Any,
        chain: HMC,
    ) -> None:
        super().__init__(gaussian, experts.detach(), members)
        self.index = batch.index
        self.prior = prior
        self.options = options
        self.chain = chain
        self.report: dict[str, Sampled] = {}
        """What the samplers told when they last ran: sampler -> samples and their quality."""

    def draw(self, n: int, noise: NoiseSource) -> Draw:
        """See `Posterior.draw`; where a row's posterior is a product no density is given."""
        several = self.members.sum(dim=1) > 1
        if not bool(several.any()):
            return super().draw(n, noise)
        with torch.no_grad():
            single = FlowProposal(
                self.gaussian, self.experts, self.members & ~several[:, None]
            ).draw(n, noise)
            z = single.latents["shared"]
            left = several
            if self.options.sampler in ("sir", "auto"):
                found = self._resampled(n, several, noise)
                self.report["sir"] = found
                z = torch.where(several[:, None], found.z, z)
                good = self.options.sampler == "sir" or found.quality > _ENOUGH
                left = several & ~torch.as_tensor(good, device=several.device)
            rows = left.nonzero().squeeze(1)
            if len(rows):
                self.report["hmc"] = moved = self._moved(n, rows, noise)
                z = z.index_copy(1, rows, moved.z)
        return Draw(latents={"shared": z})

    def mean(self) -> Latents:
        """See `Posterior.mean`; averaged over draws where there is no closed form."""
        count = self.members.sum(dim=1)
        point = self.gaussian.mean
        single = count == 1
        with torch.no_grad():
            if self.options.point == "base" and bool(single.any()):
                point = torch.where(single[:, None], self._base_points(single), point)
                drawn = count > 1
            else:
                drawn = count > 0
            if bool(drawn.any()):
                noise = RowNoise(0, self.index, point.dtype)
                z = self.draw(self.options.n_mean, noise).latents["shared"]
                point = torch.where(drawn[:, None], z.mean(dim=0), point)
        return {"shared": point[None]}

    def _resampled(self, n: int, several: Tensor, noise: NoiseSource) -> Sampled:
        members = self.members & several[:, None]
        rule, candidates = self.options.subset_posterior, self.options.candidates
        return resample(self.experts, members, self.prior, rule, candidates, n, noise)

    def _moved(self, n: int, rows: Tensor, noise: NoiseSource) -> Sampled:
        """Chains that start at draws of the mixture of the flows, in the space of the latent."""
        own = torch.zeros_like(self.members).index_copy(
            0, rows, self.members.index_select(0, rows)
        )
        size = self.gaussian.mean.shape[1]
        start, _ = self.experts.mixture(own, n, noise, "start", size)
        experts, members = self.experts.take(rows), self.members.index_select(0, rows)
        return self.chain.run(
            lambda z: log_target(experts, members, self.prior, self.options.subset_posterior, z),
            start.index_select(1, rows),
            rows,
            len(self.members),
            noise,
        )

    def _base_points(self, single: Tensor) -> Tensor:
        """The image of the base's mean in rows with one member, ``(B, D)``."""
        chosen = torch.where(single, self.members.long().argmax(dim=1), -1)[None]
        nothing = torch.zeros_like(self.gaussian.mean)[None]
        return self.experts.draw(chosen, nothing)[0]

"""DCCAE: autoencoders whose codes are correlated between modalities.

With codes z_m = f_m(x_m), A what a row has, and S the rows that have everything,

    L = - sum_{m in A} log p(x_m | z_m) - beta corr(z_1, ..., z_M over S)

(Wang, Arora, Livescu & Bilmes 2015, eq. 3, whose lambda is 1 / beta). The correlation, that of
`multivae_core.correlation`, does not change if codes are turned or scaled: codes of different
modalities lie in spaces of their own. What is encoded is therefore the canonical variates,
u_m = (z_m - mean) C_m, in which modalities agree as far as they are correlated, and

    u = 1/n sum_{m in A} u_m,      x_j is decoded from mean_j + u C_j^-1

for any j, seen or not. Means and covariances of the codes are averaged over training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, one_of, positive
from multivae_core.correlation import (
    canonical_maps,
    check_size,
    joint_correlation,
    sum_of_correlations,
)  # fmt: skip
from multivae_core.data import Batch
from multivae_core.errors import ConfigError
from multivae_core.likelihoods import Likelihood
from multivae_core.losses import LossOutput, Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.networks.heads import ModalityEncoder
from multivae_core.noise import Step
from multivae_core.posteriors import LatentName, Latents, PointPosterior
from multivae_core.priors import StandardNormalConfig

__all__ = ["DCCAE", "DCCAEConfig"]

_MOMENTUM = 0.1
_NO_DENSITY = "its encoders give points, and no density of latents"


@config
class DCCAEConfig(ModelConfig):
    """Options of DCCAE beside those of every model; ``latent_dim`` is the size k of every code.

    ``beta`` is the weight of the correlation in training. With 0 it is one autoencoder per
    modality. Covariances need large batches: 500 rows and more.

    Args:
        correlation: ``joint``: that of all modalities at once, in the rows that have everything;
            ``pairwise``: the sum over the pairs, each in the rows that have both. Without 2 M k
            such rows, 4 k for a pair, a batch has none; training with smaller batches is
            refused.
        top: How many correlations count, the largest first; None: all k.
    """

    correlation: str = attrs.field(default="joint", validator=one_of("joint", "pairwise"))
    top: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive))

    def __attrs_post_init__(self) -> None:
        if self.top is not None and self.top > self.latent_dim:
            raise ConfigError(f"must be at most latent_dim={self.latent_dim}", "top")
        if not isinstance(self.prior, StandardNormalConfig):
            raise ConfigError("codes follow no prior; leave it out", "prior")


class DCCAE(MultimodalVAE):
    """Deep canonically correlated autoencoders (Wang et al. 2015)."""

    config: DCCAEConfig
    lacks: Mapping[str, str] = {
        "joint_likelihood": _NO_DENSITY,
        "conditional_likelihood": _NO_DENSITY,
        "posterior_density": _NO_DENSITY,
        "loss_is_bound": "it has no divergence from a prior",
        "row_objective": "correlations are taken over batches",
        "generate": "its codes follow no prior; decode draws of a density fitted to embeddings",
    }
    shown: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, config: DCCAEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        count, size = len(self.modalities), config.latent_dim
        self.register_buffer("shown", torch.zeros(count, count, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(count, size))
        self.register_buffer("covariance", torch.eye(count * size))

    def build_encoder(self, name: str, custom: Mapping[str, nn.Module]) -> ModalityEncoder:
        """An encoder that gives a code and no scale."""
        trunk, counts = self.encoder_trunk(name, custom)
        return ModalityEncoder(trunk, self.encoder_latents(name), counts=counts, scale=False)

    def codes(self, batch: Batch) -> Tensor:
        """Code of every modality, ``(M, B, k)``; zeros in rows without it."""
        return self.run_encoders(batch)["shared"][:, :, 0]

    def maps(self) -> Tensor:
        """From codes to canonical variates, ``(M, k, k)``; the identity before training."""
        if bool(self.shown.any()):
            return canonical_maps(self.covariance, len(self.modalities))
        same = torch.eye(self.config.latent_dim, dtype=self.dtype, device=self.device)
        return same.expand(len(self.modalities), -1, -1)

    def posterior(self, batch: Batch) -> PointPosterior:
        """The mean of the canonical variates of what is seen."""
        variates = (self.codes(batch) - self.mean[:, None]) @ self.maps()
        total = torch.where(batch.present.T[..., None], variates, 0.0).sum(dim=0)
        point = total / batch.present.sum(dim=1, keepdim=True).clamp_min(1)
        return PointPosterior({"shared": point}, batch.something, self.prior(batch))

    def decode_one(
        self, name: str, latents: Latents, batch: Batch, rows: Tensor | None = None
    ) -> Likelihood:
        """Decode a modality's own code; canonical variates are brought back to one."""
        own, place = latents.get(_code(name)), self.modalities.index(name)
        if own is None:
            back = torch.linalg.pinv(self.maps()[place])
            own = self.mean[place] + latents["shared"] @ back
        likelihood: Likelihood = self.decoders[name](own)
        return likelihood

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """Reconstructions of every modality from its own code, and minus the correlation."""
        codes = self.codes(batch)
        scores = [
            self.weighted_score(name, {_code(name): codes[m : m + 1]}, batch, step)[0]
            for m, name in enumerate(self.modalities)
        ]
        terms = {"reconstruction": Term(-torch.stack(scores).sum(dim=0))}
        if step.training:
            self._watch(codes.detach(), batch.present)
        beta = self.beta(step)
        if beta > 0.0 and len(self.modalities) > 1:
            if step.training and step.number == 0:
                check_size(batch, self._least())
            found, rows = self._correlation(codes, batch)
            terms["correlation"] = Term(-beta * found, found.new_tensor(float(rows)))
        return LossOutput(terms=terms)

    def _correlation(self, codes: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """The correlation, and the number of rows that it is reported for."""
        if self.config.correlation == "joint":
            whole = batch.present.all(dim=1).nonzero().squeeze(1)
            together = codes.index_select(1, whole)
            rows = len(whole)
            if rows >= self._least():
                return joint_correlation(together, self.config.top), rows
            return 0.0 * codes.sum(), 0
        numbered = {name: codes[m] for m, name in enumerate(self.modalities)}
        placed = Batch(values=numbered, present=batch.present)
        found = sum_of_correlations(lambda name, rows: rows.values[name], placed, self.config.top)
        return found, batch.size

    def _least(self) -> int:
        """Rows from which a correlation can be taken."""
        joint = self.config.correlation == "joint"
        return (2 * len(self.modalities) if joint else 4) * self.config.latent_dim

    def _watch(self, codes: Tensor, present: Tensor) -> None:
        """Take codes ``(M, B, k)`` into account, every pair in the rows that have both."""
        seen = present.T[..., None]
        codes = torch.where(seen, codes.double(), 0.0)  # whatever precision the encoders run in
        mean = codes.sum(dim=1) / present.sum(dim=0).clamp_min(1)[:, None]
        stacked = torch.where(seen, codes - mean[:, None], 0.0).transpose(0, 1).flatten(1)
        pairs = present.double().T @ present.double()
        # few rows, as in a last batch, count for less than a covariance takes
        share = _MOMENTUM * (pairs / (2 * stacked.shape[1])).clamp_max(1.0)
        share = torch.where(self.shown, share, 1.0)
        share = torch.where(pairs > 1, share, 0.0)
        covariance = stacked.T @ stacked / self._per_element(pairs - 1.0).clamp_min(1.0)
        self.mean.lerp_(mean.to(self.mean), share.diagonal()[:, None].to(self.mean))
        self.covariance.lerp_(
            covariance.to(self.covariance), self._per_element(share).to(self.covariance)
        )
        self.shown.logical_or_(pairs > 1)

    def _per_element(self, pairs: Tensor) -> Tensor:
        """A value per pair of modalities for every element of the covariance, ``(M k, M k)``."""
        size = self.config.latent_dim
        return pairs.repeat_interleave(size, dim=0).repeat_interleave(size, dim=1)


def _code(name: str) -> LatentName:
    return "code", name

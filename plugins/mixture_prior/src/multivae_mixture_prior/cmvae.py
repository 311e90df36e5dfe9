"""CMVAE: MMVAE+ whose shared latent comes from clusters.

    c ~ Cat(pi),   z | c ~ p_c(z),   w_m ~ p(w_m),   x_m | z, w_m

The prior is the mixture p(z) = sum_c pi_c p_c(z) with components of fixed width, and the bound is
that of MMVAE+ with it, for every source m in A, what a row has, n = |A|:

    log w_m = log p(x_m | z, w_m) + sum_{j in A, j != m} log p(x_j | z, w_j)
              + beta [ log p(z) + log p(w_m) - log q(z | x_A) - log q(w_m | x_m) ]
    L       = 1/n sum_{m in A} E log 1/K sum_k w_mk

(Palumbo et al. 2024). The paper has E_{q(c | z)} log p(z | c) pi_c / q(c | z) in place of log p(z)
with q(c | z) := p(c | z); with the exact responsibilities these are the same number. Clusters are
assigned by p(c | z_m), z_m from every modality seen, and those that are not needed can be pruned.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from multivae_core.config import component, config, non_negative, one_of, positive
from multivae_core.data import Batch, IncompleteDataset
from multivae_core.errors import ConfigError, DataError
from multivae_core.estimation import batches_of, evaluating
from multivae_core.inference import Output
from multivae_core.noise import RowNoise, Step
from multivae_core.posteriors import Latents
from multivae_core.private_mixture_vae import PrivateMixtureVAE, PrivateMixtureVAEConfig
from multivae_mixture_prior._clusters import NORMALISERS, POOLS, Pruning, pooled, select
from multivae_mixture_prior.mixture import GaussianMixture, GaussianMixtureConfig

__all__ = ["CMVAE", "CMVAEConfig"]

_ROWS = 512


def _clusters(options: CMVAEConfig) -> dict[str, Any]:
    return {
        "type": "gmm",
        "n_components": options.n_clusters,
        "family": options.family,
        "learn_scales": False,
        "spread": options.spread,
    }


@config
class CMVAEConfig(PrivateMixtureVAEConfig):
    """Options of CMVAE beside those of every model with a mixture and private latents.

    Args:
        n_samples: Samples K per expert; the published runs have 1 or 10.
        n_clusters: Number C of clusters, more than there are: a model can lose clusters in
            training or by `CMVAE.prune`, and gains none.
        spread: The means of the clusters start uniformly between minus this and this.
        prior: Prior of the shared latent, a ``gmm``; by default one of the same family as the
            experts, with scales that are not learned: 1, or log 2 under
            ``normal_with_softplus``. One that is given outweighs the two options above. Its
            ``warm_up`` is for a start of the clusters by k-means, see `CMVAE.start_clusters`.
        missing_norm: ``available``: the log-likelihoods of a row are summed over what it has.
            ``total``: times M / n in training, as many as a complete row has.
    """

    n_samples: int = attrs.field(default=1, validator=positive)
    n_clusters: int = attrs.field(default=10, validator=positive)
    spread: float = attrs.field(default=1.0, validator=non_negative)
    prior: Any = component("priors", default=attrs.Factory(_clusters, takes_self=True))
    missing_norm: str = attrs.field(default="available", validator=one_of("available", "total"))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not isinstance(self.prior, GaussianMixtureConfig):
            raise ConfigError(
                "must be a mixture of clusters, 'gmm'; for another prior use mmvae_plus", "prior"
            )


class CMVAE(PrivateMixtureVAE):
    """Mixture of experts with private latents and clusters (Palumbo et al. 2024)."""

    config: CMVAEConfig
    shared_prior: GaussianMixture

    def reconstruction(
        self, latents: Latents, batch: Batch, step: Step, valid: Tensor | None = None
    ) -> Tensor:
        """See `MultimodalVAE.reconstruction`, and the option ``missing_norm``."""
        scores = super().reconstruction(latents, batch, step, valid)
        if self.config.missing_norm == "available" or not step.training:
            return scores
        return scores * (len(self.modalities) / batch.present.sum(dim=1).clamp_min(1))

    def clusters(
        self,
        data: IncompleteDataset | Batch,
        pool: str = "mean_prob",
        n_samples: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Assign rows to clusters, by what is seen of every row.

        Args:
            data: N rows.
            pool: ``mean_prob``: the mean over the modalities of p(c | z_m). ``vote``: the share
                of the modalities for which c is the most probable cluster; the authors' code.
            n_samples: Samples of every z_m, over which p(c | z_m) is averaged; None: z_m is the
                mean. The authors' code draws one.
            seed: Of the samples.

        Returns:
            ``(N, C)``, rows sum to 1; the label of a row is its argmax. Rows of which nothing is
            seen have the clusters' weights.
        """
        _check(POOLS, pool, "pool")
        with torch.no_grad():
            table, present = self._table(data, n_samples, seed)
            return pooled(table, present, self.shared_prior.log_weights(), pool)

    def generate_cluster(
        self, cluster: int, n: int, seed: int = 0, output: Output = "mean"
    ) -> dict[str, Tensor]:
        """Generate rows of one cluster; see `generate`.

        Raises:
            DataError: There is no such cluster, it was pruned, or ``warm_up`` lasts.
        """
        self._check_started()
        with self.shared_prior.only(cluster):
            return self.generate(n, seed, output)

    def start_clusters(self, data: IncompleteDataset | Batch, seed: int = 0) -> None:
        """Put the clusters where k-means finds them in the embedded data.

        For use after some epochs of training; all clusters are active again.

        Args:
            data: N rows; those of which nothing is seen are left out.
            seed: Of the start of k-means.
        """
        seen = [batch.something for batch in batches_of(self, data, _ROWS)]
        self.shared_prior.start_from(self.embed(data, "shared")[torch.cat(seen)], seed)

    def prune(
        self,
        data: IncompleteDataset | Batch,
        pool: str = "mean_prob",
        normaliser: str = "initial",
        n_samples: int | None = None,
        seed: int = 0,
    ) -> Pruning:
        """Keep the clusters that data need; the model stays one that trains, saves and loads.

        As long as there are two clusters the one with the least mass goes, and what is left is
        scored by

            H = beta mean_m Ent(p(c | z_m)) / log C_0 - mean_m log p(z_m) / D

        over what is seen, mean over rows; the set with the least H is kept. The mass of a
        cluster is the sum, over the rows that are assigned to it, of their largest mean
        probability.

        Args:
            data: N rows that were not trained on.
            pool: How rows are assigned, see `clusters`.
            normaliser: C_0 in H: the number of clusters at the start, ``initial``, as in the
                authors' code; or the number in the set that is scored, ``active``.
            n_samples: See `clusters`.
            seed: Of the samples.

        Raises:
            DataError: Nothing is seen of any row, or an option that is not known.
        """
        _check(POOLS, pool, "pool")
        _check(NORMALISERS, normaliser, "normaliser")
        with torch.no_grad():
            table, present = self._table(data, n_samples, seed)
            if not bool(present.any()):
                raise DataError("prune: nothing is seen of any row; pass rows with data")
            prior, beta = self.shared_prior, self.config.beta
            found = select(table, present, prior, pool, normaliser, beta)
            kept = torch.zeros_like(prior.active)
            kept[list(found.kept)] = True
            prior.set_active(kept)
        return found

    def _check_started(self) -> None:
        if not bool(self.shared_prior.started):
            raise DataError("warm_up holds all clusters at one place; call start_clusters first")

    def _table(
        self, data: IncompleteDataset | Batch, n_samples: int | None, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Log-densities p_c(z_m), ``(n, M, N, C)``, and what is seen, ``(N, M)``."""
        if n_samples is not None and n_samples < 1:
            raise DataError(f"n_samples must be at least 1 or None, got {n_samples}")
        self._check_started()
        parts, present = [], []
        with evaluating(self):
            for batch in batches_of(self, data, _ROWS):
                experts = self.experts(self.run_encoders(batch)["shared"])
                z = experts.mean[None]
                if n_samples is not None:
                    noise = RowNoise(seed, batch.index, self.dtype)
                    drawn = [
                        experts[m].sample(n_samples, noise, ("cluster", name))
                        for m, name in enumerate(self.modalities)
                    ]
                    z = torch.stack(drawn, dim=1)
                parts.append(self.shared_prior.component_log_prob(z))
                present.append(batch.present)
        return torch.cat(parts, dim=2), torch.cat(present)


def _check(known: tuple[str, ...], value: str, name: str) -> None:
    if value not in known:
        raise DataError(f"{name} must be one of {', '.join(known)}; got {value!r}")

"""What models with a mixture of experts and private latents beside the shared one share.

For the source m, z ~ q_m(z | x_m), w_m ~ q(w_m | x_m), and in "plus" every other w_n ~ r_n, an
auxiliary prior of learned scale:

    log w = log p(x_m | z, w_m) + sum_{n != m} log p(x_n | z, w_n)
            + beta [ log p(z) + log p(w_m) - log q(z | x_A) - log q(w_m | x_m) ]

No ratio of w_n enters: such a weight belongs to a model whose private priors are r_n for n != m,
and bounds the likelihood of the nominal one where r_n = p. A target's private posterior is no way
around z. In "factorized" every w_n ~ q(w_n | x_n), and every ratio enters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, one_of, structure
from multivae_core.data.batch import Batch
from multivae_core.distributions import Distribution, Laplace, Normal, either
from multivae_core.errors import ConfigError
from multivae_core.mixture_vae import MixtureVAE, MixtureVAEConfig, Samples
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior, JointPrior, LatentName, Latents
from multivae_core.priors import Prior, ScaledConfig, ScaledPrior
from multivae_core.private_latents import check_names, private_sizes

__all__ = ["PrivateMixtureVAE", "PrivateMixtureVAEConfig"]


def _as_large(options: PrivateMixtureVAEConfig) -> int:
    return options.latent_dim


@config
class PrivateMixtureVAEConfig(MixtureVAEConfig):
    """Options of a model with a mixture of experts and private latents.

    Args:
        private_dims: Size of every modality's private latent; modalities left out have none. A
            number is the size for all; by default that of the shared latent.
        learn_prior_w: Whether the scales of the private priors p(w_m) are learned.
        tie_private_prior: Whether one private prior serves all modalities, whose private latents
            are then of one size.
        learn_aux: Whether the scales of the auxiliary priors r_m are learned.
        cross_private: What private latents of modalities that are not seen are drawn from when
            rows are encoded, predicted or imputed: their ``prior``, or ``aux``, r_m.
        variant: ``plus``: private latents of targets come from r_n; ``factorized``: from their
            own posteriors, with every ratio in the weight (the authors' code leaves those of the
            targets out, so that what they let through costs nothing).
    """

    private_dims: dict[str, int] = private_sizes(attrs.Factory(_as_large, takes_self=True))
    learn_prior_w: bool = False
    tie_private_prior: bool = False
    learn_aux: bool = True
    cross_private: str = attrs.field(default="prior", validator=one_of("prior", "aux"))
    variant: str = attrs.field(default="plus", validator=one_of("plus", "factorized"))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_names(self, "private_dims")
        sizes = sorted({*self.private_dims.values()})
        if self.tie_private_prior and len(sizes) > 1:
            raise ConfigError(
                f"needs private latents of one size, got {' and '.join(map(str, sizes))}; give"
                " one number in private_dims, or leave it out",
                "tie_private_prior",
            )


class PrivateMixtureVAE(MixtureVAE):
    """A mixture of experts with private latents and an importance-weighted bound."""

    config: PrivateMixtureVAEConfig
    lacks: Mapping[str, str] = {
        "loss_is_bound": "private latents of targets come from r, which need not be their prior"
    }

    def __init__(self, config: PrivateMixtureVAEConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        names = [name for name in self.modalities if name in config.private_dims]
        self._places = {name: place for place, name in enumerate(names)}
        self.private_priors = self._scaled(config.learn_prior_w, config.tie_private_prior)
        self.auxiliary_priors = self._scaled(config.learn_aux)

    def private_dims(self) -> dict[str, int]:
        """Size of every modality's private latent."""
        return self.config.private_dims

    def private_prior(self, name: str) -> ScaledPrior:
        """p(w) of a modality."""
        place = 0 if self.config.tie_private_prior else self._places[name]
        prior: Any = self.private_priors[place]
        return prior  # type: ignore[no-any-return]

    def auxiliary_prior(self, name: str) -> ScaledPrior:
        """r(w) of a modality."""
        prior: Any = self.auxiliary_priors[self._places[name]]
        return prior  # type: ignore[no-any-return]

    def prior(self, batch: Batch) -> JointPrior:
        """The prior over all latents: independent private ones."""
        own: dict[LatentName, Prior] = {}
        for name in self._places:
            own["private", name] = self.private_prior(name)
        return JointPrior(self.shared_prior, self.latent_sizes, own)

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The mixture of the experts and, of modalities not seen, ``cross_private``."""
        return self._posterior(batch, self.config.cross_private == "aux")

    def proposal(self, batch: Batch) -> FactorisedPosterior:
        """The posterior with p(w) for modalities not seen, so that they do not matter."""
        return self._posterior(batch, False)

    def samples(self, batch: Batch, step: Step) -> Samples:
        """See `MixtureVAE.samples`."""
        samples = super().samples(batch, step)
        count = len(samples.sources)
        for name, size in self.private_dims().items():
            own = ("private", name)
            if self.config.variant == "factorized":
                samples.stratified[own] = self.standard(own, count, size, batch, step)
                continue
            samples.own[own] = self.standard(own, 1, size, batch, step)[0]
            samples.stratified[own] = self.standard(("auxiliary", name), count, size, batch, step)
        return samples

    def private_samples(
        self, encoded: Mapping[LatentName, Tensor], samples: Samples, batch: Batch
    ) -> tuple[Latents, Tensor | None]:
        """See `MixtureVAE.private_samples`."""
        make = self._plus if self.config.variant == "plus" else self._factorized
        latents: Latents = {}
        total: Tensor | None = None
        for name in self._places:
            q = self.experts(encoded["private", name])
            latents["private", name], ratio = make(name, q, samples, batch)
            total = ratio if total is None else total + ratio
        return latents, total

    def _plus(
        self, name: str, q: Normal | Laplace, samples: Samples, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Own private draws where the modality is the source, those of r elsewhere."""
        source, latent = self.modalities.index(name), ("private", name)
        own = q.place(samples.own[latent])
        if self.config.estimator == "dreg":
            own = samples.damped(own, source)
        ratio = self.private_prior(name).log_prob(own) - self.scored(q).log_prob(own)
        cross = self.auxiliary_prior(name).distribution().place(samples.stratified[latent])
        is_own = (samples.sources == source)[:, None]
        value = torch.where(is_own[..., None], own, cross).flatten(0, 1)
        return value, torch.where(is_own, ratio, 0.0)

    def _factorized(
        self, name: str, q: Normal | Laplace, samples: Samples, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Draws of the own posterior for every source."""
        standard = samples.stratified["private", name]
        value = q.place(standard).flatten(0, 1)
        if self.config.estimator == "dreg":
            value = samples.damped(value)
        ratio = self.private_prior(name).log_prob(value) - self.scored(q).log_prob(value)
        seen = batch.column(name)
        return value, torch.where(seen, ratio, 0.0).unflatten(0, standard.shape[:2])

    def _posterior(self, batch: Batch, auxiliary: bool) -> FactorisedPosterior:
        encoded = self.run_encoders(batch)
        parts: dict[LatentName, Distribution] = {"shared": self.mixture(encoded, batch)}
        for name in self._places:
            own = self.experts(encoded["private", name])
            if batch.rows(name) is not None:
                other = self.private_prior(name).distribution()
                if auxiliary:  # a row of which nothing is seen has the prior
                    aux = self.auxiliary_prior(name).distribution()
                    other = either(batch.something[:, None], aux, other)
                own = either(batch.column(name)[:, None], own, other)
            parts["private", name] = own
        return FactorisedPosterior(parts)

    def _scaled(self, learn: bool, tied: bool = False) -> nn.ModuleList:
        options = structure(ScaledConfig, {"family": self.config.family, "learn": learn})
        names = [*self._places][:1] if tied else self._places
        return nn.ModuleList(ScaledPrior(options, self.private_dims()[name]) for name in names)

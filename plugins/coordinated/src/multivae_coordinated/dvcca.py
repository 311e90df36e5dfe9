"""VCCA and VCCA-private: a shared latent that is read from one view, and private ones.

With a reference view r, what a row has A, z ~ q(z | x_r) and w_n ~ q(w_n | x_n),

    L = beta KL(q(z | x_r) || p)
        - sum_{n in A} [ E log p(x_n | z, w_n) - beta beta_n KL(q(w_n | x_n) || N(0, I)) ]

(Wang et al. 2016, eq. 4 and 9), for beta = 1 a negative bound on log p(x_A). With every view as
reference in turn L is their weighted mean, bi-VCCA: with equal weights this is MCVAE.
"""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from multivae_coordinated._sources import SourcesConfig, SourcesVAE
from multivae_core.config import config, each, one_of, positive
from multivae_core.data import Batch
from multivae_core.errors import ConfigError, DataError
from multivae_core.losses import LossOutput
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.private_latents import check_names

__all__ = ["DVCCA", "DVCCAConfig"]

ALL = "all"


@config
class DVCCAConfig(SourcesConfig):
    """Options of VCCA beside those of every model.

    A view that is not seen is predicted with draws of its private latent from the prior; with its
    mean, 0, by ``model.decode(model.encode(data))``.

    Args:
        reference: The view that the shared latent is read from; or ``all`` of them in turn,
            which rows with any hole can be encoded by.
        reference_weights: Weights of single views as references, in any unit; those left out
            have 1.
        missing_reference: What becomes of a row without the reference view: ``raise`` an error,
            or ``skip`` it, which leaves its shared latent at the prior and gives it no weight in
            the loss.
    """

    reference: str = ALL
    reference_weights: dict[str, float] = attrs.field(factory=dict, validator=each(positive))
    missing_reference: str = attrs.field(default="raise", validator=one_of("raise", "skip"))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_names(self, "reference_weights")
        if self.reference != ALL and self.modalities and self.reference not in self.modalities:
            known = ", ".join(self.modalities)
            raise ConfigError(f"must be 'all' or a modality: {known}", "reference")


class DVCCA(SourcesVAE):
    """Variational canonical correlation analysis (Wang et al. 2016)."""

    config: DVCCAConfig

    def __init__(self, config: DVCCAConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        if config.reference != ALL:
            reason = f"its shared latent is read from {config.reference!r} alone"
            self.lacks = {**self.lacks, "encodes_any_subset": reason}

    @property
    def sources(self) -> tuple[str, ...]:
        """The references."""
        one = self.config.reference
        return self.modalities if one == ALL else (one,)

    def mu(self, batch: Batch) -> Tensor:
        """The weights of the references that a row has."""
        return self.relative(self.config.reference_weights, batch)

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The references that are present, see ``encode_with``; the prior where none is."""
        self._check(batch)
        return super().posterior(batch)

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative bound in its terms."""
        self._check(batch)
        return self.bound(batch, step)

    def _check(self, batch: Batch) -> None:
        """Refuse rows of which something is seen, but not the reference."""
        if self.config.reference == ALL or self.config.missing_reference == "skip":
            return
        without = batch.something & ~batch.column(self.config.reference)
        if bool(without.any()):
            row = int(batch.index[without][0])
            raise DataError(
                f"row {row} has no {self.config.reference!r}, the view that the shared latent is"
                " read from; set reference='all', or missing_reference='skip' to leave such rows"
                " at the prior"
            )

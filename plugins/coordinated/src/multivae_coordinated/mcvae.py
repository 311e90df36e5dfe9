"""MCVAE: every channel's code explains all channels.

With A what a row has, n = |A| and z ~ q_m,

    L = 1/n sum_{m in A} [ beta KL(q_m(z | x_m) || p) - 1/c sum_{j in A} E log p(x_j | z) ]

with c = 1 (Antelmi et al. 2019, eq. 3): for beta = 1 the mean of n negative bounds on log p(x_A).
Private latents and the sparse variant are described in `_sources`.
"""

from __future__ import annotations

import attrs
from torch import Tensor

from multivae_coordinated._sources import SourcesConfig, SourcesVAE
from multivae_core.config import config, one_of
from multivae_core.data import Batch
from multivae_core.errors import ConfigError
from multivae_core.losses import LossOutput
from multivae_core.noise import Step

__all__ = ["MCVAE", "MCVAEConfig"]


@config
class MCVAEConfig(SourcesConfig):
    """Options of MCVAE beside those of every model.

    Args:
        channels: The modalities that are encoded, for example to predict scores from images;
            None: all. What a row is shown of the others changes no code. Modalities that are not
            to be explained get the weight 0 in ``modalities``.
        cross_norm: c: 1 (``sum``), or the number n of what a row has (``mean``), the rule of
            Antelmi et al. 2021 for data with holes, row by row.
    """

    channels: list[str] | None = None
    cross_norm: str = attrs.field(default="sum", validator=one_of("sum", "mean"))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.channels is None:
            return
        if not self.channels or len(set(self.channels)) < len(self.channels):
            raise ConfigError("must name one modality or more, each once; or None", "channels")
        for name in self.channels:
            if name not in self.modalities:
                known = ", ".join(self.modalities)
                raise ConfigError(f"unknown modality {name!r}; there is {known}", "channels")


class MCVAE(SourcesVAE):
    """Multi-channel VAE (Antelmi et al. 2019)."""

    config: MCVAEConfig

    @property
    def sources(self) -> tuple[str, ...]:
        """The channels that are encoded."""
        chosen = self.config.channels
        return tuple(m for m in self.modalities if chosen is None or m in chosen)

    def mu(self, batch: Batch) -> Tensor:
        """Equal weights over the channels that a row has."""
        return self.relative({}, batch)

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative bound in its two terms."""
        scale = None
        if self.config.cross_norm == "mean":
            scale = 1.0 / batch.present.sum(dim=1).clamp_min(1).to(self.dtype)
        return self.bound(batch, step, scale)

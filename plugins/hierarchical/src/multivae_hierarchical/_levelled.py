"""What a model with a hierarchy is built of: the options of its networks, and the networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import build, config, positive
from multivae_core.data import Batch
from multivae_core.errors import ConfigError
from multivae_core.likelihoods import Likelihood
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.networks.heads import ModalityDecoder
from multivae_core.noise import Step
from multivae_core.posteriors import LatentName, Latents
from multivae_hierarchical import _networks
from multivae_hierarchical._hierarchy import Evidence, Hierarchy, recomputed
from multivae_hierarchical._levels import names_of
from multivae_hierarchical._options import check_lengths, choice, numbers

__all__ = ["LevelledVAE", "LevelsConfig"]


@config
class LevelsConfig(ModelConfig):
    """Options of the networks of a hierarchy.

    Args:
        n_levels: Number of levels L.
        network: ``mlp``: all levels are vectors; ``conv2d``, ``conv3d``: maps over a common grid,
            to which maps of other sizes are interpolated and onto which vectors are broadcast;
            ``auto``: maps where every modality is an image, or every one a volume. Maps have
            encoders and decoders of their own in place of ``modalities.<name>.encoder`` and
            ``decoder``.
        channels: Channels of the features of levels 1 to L - 1, the last number serving for all
            further; None: 128 for vectors; 32, 64, 128 for maps.
        latent_channels: Channels of the latents of levels 1 to L - 1; None: ``latent_dim``.
        first_stride: Step of the finest grid in cells of the data; 1 is the authors'.
        top: Whether the top level over maps is a ``vector`` (the authors') or a ``map``.
        normalisation: None; ``layer``: groups of channels within a row; ``instance`` (the
            authors'): every channel of a map within a row.
        weight_norm: Whether the last layers of priors and experts have their weights normalised
            (Salimans & Kingma 2016), as in the authors' code.
        share: Heads that modalities have in common: ``all`` (the authors'), those of the
            ``levels`` below the top, or ``none``.
        clamp: Means and log-variances are kept within plus and minus this by a hyperbolic
            tangent, 10 in the authors' code (of log-scales); None: not at all.
        poe: ``precision``: the product of Gaussians; ``scale``: the authors' code, which adds
            inverse deviations, is no product, and serves for weights trained with it.
        recompute: Whether encoders, levels and decoders keep nothing for their gradients and are
            computed anew on the way back: the same bits out of less memory, in up to two thirds
            more time. Running statistics in networks of one's own see every batch twice then.
    """

    n_levels: int = attrs.field(default=3, validator=positive)
    network: str = choice("auto", "mlp", "conv2d", "conv3d")
    channels: list[int] | None = numbers(positive)
    latent_channels: list[int] | None = numbers(positive)
    first_stride: int = attrs.field(default=2, validator=positive)
    top: str = choice("vector", "map")
    normalisation: str | None = choice(None, "layer", "instance")
    weight_norm: bool = False
    share: str = choice("all", "levels", "none")
    clamp: float | None = numbers(positive)
    poe: str = choice("precision", "scale")
    recompute: bool = False

    def __attrs_post_init__(self) -> None:
        check_lengths(self, {"latent_channels": self.n_levels - 1})
        if self.channels is not None and not self.channels:
            raise ConfigError("must have at least one entry, or be None", "channels")


class LevelledVAE(MultimodalVAE):
    """A model whose latents are ``z1``, the finest level, to ``zL``; decoders read ``z1``."""

    config: LevelsConfig
    representation = ("z1",)
    roles = _networks.ROLES

    def __init__(
        self, config: LevelsConfig, networks: Mapping[str, nn.Module] | None = None, **own: Any
    ) -> None:
        super().__init__(config, networks=networks, **own)
        shapes = tuple(self.latent_shapes.values())
        power = 1.0 if config.poe == "precision" else 0.5
        by_role = _networks.by_role(self, networks or {})
        self.hierarchy = Hierarchy(shapes, by_role, config.clamp, power, config.recompute)
        if len(shapes[-1]) > 1:  # the top is a map, which the prior sees as a vector
            self.shared_prior = build("priors", config.prior, self.hierarchy.size(config.n_levels))
            self.shared_prior.bind(self)

    def build_encoder(self, name: str, custom: Mapping[str, nn.Module]) -> nn.Module:
        """See `MultimodalNetworks.build_encoder`: a network that gives the first features."""
        return _networks.encoder(self, name, custom)

    def build_decoder(self, name: str, custom: Mapping[str, nn.Module]) -> ModalityDecoder:
        """See `MultimodalNetworks.build_decoder`: it reads the finest level and nothing else."""
        return _networks.decoder(self, name, custom) or super().build_decoder(name, custom)

    def decoder_size(self, name: str) -> int:
        """Size of the finest level, where it is a vector."""
        return _networks.blocks_of(self.config).latents[0][0]

    @property
    def latent_shapes(self) -> dict[LatentName, tuple[int, ...]]:
        """Shapes of ``z1``, the finest level, to ``zL``."""
        shapes = _networks.blocks_of(self.config).latents
        return dict(zip(names_of(len(shapes)), shapes, strict=True))

    @property
    def shape_table(self) -> str:
        """Shapes of features and latents, a line per level; what networks by role must fit."""
        return str(_networks.blocks_of(self.config))

    def decode_one(
        self, name: str, latents: Latents, batch: Batch, rows: Tensor | None = None
    ) -> Likelihood:
        """See `MultimodalNetworks.decode_one`; only ``z1`` is read."""
        likelihood: Likelihood = self.decoders[name](latents["z1"])
        return likelihood

    def weighted_score(
        self, name: str, latents: Latents, batch: Batch, step: Step, valid: Tensor | None = None
    ) -> Tensor:
        """See `MultimodalVAE.weighted_score`; ``recompute`` is about it too."""
        score = super().weighted_score
        return recomputed(self.config.recompute, score, name, latents, batch, step, valid)

    def evidence(self, batch: Batch) -> dict[str, Evidence]:
        """What every modality says, on the rows that have it."""
        wanted = self.config.recompute
        return {name: recomputed(wanted, self._said, name, batch) for name in self.modalities}

    def _said(self, name: str, batch: Batch) -> Evidence:
        features, rows = self.encode_one(name, batch)
        place = None
        if rows is not None:
            place = rows.new_zeros(batch.size)
            place[rows] = torch.arange(len(rows), device=rows.device)
        return self.hierarchy.climb(name, features, place)

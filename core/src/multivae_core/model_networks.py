"""The networks of a model, and what runs on the rows that are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from multivae_core.config import build
from multivae_core.data.batch import Batch
from multivae_core.errors import ConfigError, DataError
from multivae_core.likelihoods import Likelihood, LikelihoodHead
from multivae_core.networks.heads import (
    ModalityDecoder,
    ModalityEncoder,
    PerModality,
    PlainTrunk,
    check_decoder,
)
from multivae_core.posteriors import LatentName, Latents
from multivae_core.priors import Prior
from multivae_core.transforms import Transform

__all__ = ["MultimodalNetworks", "no_network"]


class MultimodalNetworks(nn.Module):
    """One encoder, decoder and scale per modality, and the prior of the shared latent.

    Args:
        config: The configuration.
        encoders: Modality -> the user's own network ``(R, *shape) -> (R, F)``.
        decoders: Modality -> the user's own network
            ``(R, D) -> (R, P * shape[0], *shape[1:])``.
        networks: Role -> the user's own network, for roles beside these two; see `roles`.

    Raises:
        ConfigError: A network is missing, or does not fit.
    """

    roles: ClassVar[Mapping[str, str]] = {}
    """Role of a further network that a user may give -> what it must map to what."""

    def __init__(
        self,
        config: Any,
        encoders: Mapping[str, nn.Module] | None = None,
        decoders: Mapping[str, nn.Module] | None = None,
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        # the user's own by role, which a model folder cannot describe; a model builds them in
        self.own_networks = _of_known_roles(networks or {}, self.roles)
        # what a model card tells beyond the configuration: kept in the model folder as JSON
        self.notes: dict[str, Any] = {}
        # sorted: the order in which a user lists modalities then changes nothing
        self.modalities: tuple[str, ...] = tuple(sorted(config.modalities))
        if not self.modalities:
            raise ConfigError("a model needs at least one modality", "modalities")
        self.encoders = PerModality(
            {name: self.build_encoder(name, encoders or {}) for name in self.modalities}
        )
        self.decoders = PerModality(
            {name: self.build_decoder(name, decoders or {}) for name in self.decoded}
        )
        self.transforms = PerModality(
            {name: Transform(config.modalities[name].shape) for name in self.modalities}
        )
        self.shared_prior: Prior = build("priors", config.prior, config.latent_dim)
        self.shared_prior.bind(self)

    def decode_one(
        self, name: str, latents: Latents, batch: Batch, rows: Tensor | None = None
    ) -> Likelihood:
        """The likelihood of one modality, on the model's scale.

        Args:
            name: The modality.
            latents: Latent -> ``(n, R, *event)``.
            batch: What is seen.
            rows: The rows of the batch that the latents belong to, ``(R,)``; None: all.
        """
        own = latents.get(("private", name))
        shared = latents["shared"]
        likelihood: Likelihood = self.decoders[name](
            shared if own is None else torch.cat([shared, own], dim=-1)
        )
        return likelihood

    def build_encoder(self, name: str, custom: Mapping[str, nn.Module]) -> nn.Module:
        """Build the encoder of a modality; a model with other networks overrides this.

        Args:
            name: The modality.
            custom: Modality -> the user's own network.
        """
        trunk, counts = self.encoder_trunk(name, custom)
        return ModalityEncoder(trunk, self.encoder_latents(name), counts=counts)

    def encoder_trunk(self, name: str, custom: Mapping[str, nn.Module]) -> tuple[nn.Module, bool]:
        """Build what gives features of a modality; also whether it is to see log(1 + x)."""
        own = self.config.modalities[name]
        if name in custom:
            return PlainTrunk(custom[name], name, own.shape), False
        if own.encoder is None:
            raise no_network("encoder", name)
        try:
            trunk: nn.Module = build("encoders", own.encoder, own.shape, own.element_mask)
        except ConfigError as error:
            raise error.under(f"modalities.{name}.encoder") from error
        head: LikelihoodHead = build("likelihoods", own.likelihood, own.shape)
        return trunk, head.counts

    def encoder_latents(self, name: str) -> dict[LatentName, int]:
        """The latents that a modality's encoder speaks about, with their sizes."""
        latents: dict[LatentName, int] = {"shared": self.config.latent_dim}
        if name in self.private_dims():
            latents["private", name] = self.private_dims()[name]
        return latents

    def build_decoder(self, name: str, custom: Mapping[str, nn.Module]) -> ModalityDecoder:
        """Build the decoder of a modality; a model with other networks overrides this."""
        own, size = self.config.modalities[name], self.decoder_size(name)
        head = build("likelihoods", own.likelihood, own.shape)
        shape = (head.n_params * own.shape[0], *own.shape[1:])
        if name in custom:
            check_decoder(custom[name], name, (size,), shape)
            return ModalityDecoder(custom[name], head, own.shape)
        if own.decoder is None:
            raise no_network("decoder", name)
        try:
            network = build("decoders", own.decoder, size, shape)
        except ConfigError as error:
            raise error.under(f"modalities.{name}.decoder") from error
        return ModalityDecoder(network, head, own.shape)

    def decoder_size(self, name: str) -> int:
        """Size of what a modality's decoder reads."""
        size: int = self.config.latent_dim + self.private_dims().get(name, 0)
        return size

    @property
    def takes_prior_density(self) -> bool:
        """Whether the loss takes log p(z) of the shared latent and never `Prior.divergence`."""
        return False

    @property
    def decoded(self) -> tuple[str, ...]:
        """The modalities that the model has a decoder for; the others are conditions alone."""
        return self.modalities

    def private_dims(self) -> dict[str, int]:
        """Size of every modality's private latent; modalities without one are left out."""
        return {}

    @property
    def latent_sizes(self) -> dict[LatentName, int]:
        """Size of every latent."""
        sizes: dict[LatentName, int] = {"shared": self.config.latent_dim}
        for name, size in self.private_dims().items():
            sizes["private", name] = size
        return sizes

    @property
    def latent_shapes(self) -> dict[LatentName, tuple[int, ...]]:
        """Shape of every latent; a model whose latents are maps overrides this."""
        return {name: (size,) for name, size in self.latent_sizes.items()}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.transforms[self.modalities[0]].shift.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the parameters; data are cast to it in `prepare` and nowhere else."""
        return self.transforms[self.modalities[0]].shift.dtype

    def encode_one(self, name: str, batch: Batch) -> tuple[Any, Tensor | None]:
        """Run the encoder of a modality on the rows that have it.

        Returns:
            What the encoder gives, and the numbers of those rows, ``(R,)``; None: all rows.
        """
        rows, values, observed = batch.rows(name), batch.values[name], batch.observed.get(name)
        if rows is not None:
            values = values.index_select(0, rows)
            observed = None if observed is None else observed.index_select(0, rows)
        return self.encoders[name](values, observed), rows

    def run_encoders(self, batch: Batch) -> dict[LatentName, Tensor]:
        """Run every encoder once, on the rows that have its modality.

        Returns:
            ``"shared"``: location and raw scale of every expert, ``(M, B, 2, D)``; a private
            latent: ``(B, 2, D)``. Zeros in rows without the modality: with a log-variance as raw
            scale these are the parameters of N(0, I).
        """
        shared: list[Tensor] = []
        encoded: dict[LatentName, Tensor] = {}
        for name in self.modalities:
            parts, rows = self.encode_one(name, batch)
            for latent, part in parts.items():
                whole = part
                if rows is not None:
                    empty = part.new_zeros(batch.size, *part.shape[1:])
                    whole = empty.index_copy(0, rows, part)
                if latent == "shared":
                    shared.append(whole)
                else:
                    encoded[latent] = whole
        if shared:
            encoded["shared"] = torch.stack(shared)
        return encoded

    def score(
        self, name: str, latents: Latents, batch: Batch, valid: Tensor | None = None
    ) -> Tensor:
        """Log-likelihood of one modality, decoding only the rows that have it.

        Args:
            name: The modality.
            latents: Latent -> ``(n, B, *event)``.
            batch: Gives the targets: what is present in it is scored.
            valid: ``(n, B)`` bool, which samples to score, or ``(n, 1)``, the same in every
                row; None: all.

        Returns:
            ``(n, B)`` nats on the model's scale, 0 where nothing was scored.
        """
        if valid is not None and valid.shape[1] == 1:
            kept = valid[:, 0].nonzero().squeeze(1)
            part = {latent: value.index_select(0, kept) for latent, value in latents.items()}
            scores = self.score(name, part, batch)
            return scores.new_zeros(len(valid), batch.size).index_copy(0, kept, scores)
        if valid is not None:
            return self._score_some(name, latents, batch, valid)
        values, observed = batch.values[name], batch.observed.get(name)
        rows = batch.rows(name)
        if rows is None:
            return self.decode_one(name, latents, batch).log_prob(values, observed)
        part = {latent: value.index_select(1, rows) for latent, value in latents.items()}
        scores = self.decode_one(name, part, batch, rows).log_prob(
            values.index_select(0, rows),
            None if observed is None else observed.index_select(0, rows),
        )
        return scores.new_zeros(scores.shape[0], batch.size).index_copy(1, rows, scores)

    def _score_some(self, name: str, latents: Latents, batch: Batch, valid: Tensor) -> Tensor:
        n = valid.shape[0]
        wanted = (valid & batch.column(name)).flatten().nonzero().squeeze(1)
        rows = wanted % batch.size
        part = {
            latent: value.flatten(0, 1).index_select(0, wanted)[None]
            for latent, value in latents.items()
        }
        observed = batch.observed.get(name)
        scores = self.decode_one(name, part, batch, rows).log_prob(
            batch.values[name].index_select(0, rows),
            None if observed is None else observed.index_select(0, rows),
        )
        empty = scores.new_zeros(n * batch.size)
        return empty.index_copy(0, wanted, scores[0]).view(n, batch.size)

    def prepare(self, batch: Batch) -> Batch:
        """Bring a batch to the model: its scale, type, device and order of modalities.

        A modality of the model that the batch does not have is missing in every row.

        Raises:
            DataError: An unknown modality, or measurements of another shape.
        """
        self._check_shapes(batch)
        batch, dtype = batch.to(self.device), self.dtype
        values, observed = {}, {}
        for name in self.modalities:
            own, mask = batch.values.get(name), batch.observed.get(name)
            if own is None:
                shape = self.config.modalities[name].shape
                values[name] = torch.zeros(batch.size, *shape, dtype=dtype, device=self.device)
                continue
            scaled = self.config.modalities[name].standardise
            own = self.transforms[name](own) if scaled else own.to(dtype)
            if mask is not None:
                observed[name] = mask
            if mask is not None or batch.rows(name) is not None:
                # selected, not multiplied: what lies under a hole may be NaN
                own = torch.where(batch.seen(name), own, 0.0)
            values[name] = own
        return batch.with_values(values, observed)

    def _check_shapes(self, batch: Batch) -> None:
        for name, value in batch.values.items():
            if name not in self.config.modalities:
                raise DataError(
                    f"modality {name!r} is unknown to this model, which was built for"
                    f" {', '.join(self.modalities)}; rename it, or leave it out"
                )
            shape = self.config.modalities[name].shape
            if tuple(value.shape[1:]) != shape:
                raise DataError(
                    f"modality {name!r}: measurements have shape {tuple(value.shape[1:])}, the"
                    f" model was built for {shape}; bring the data to that shape, or create a"
                    " model from them"
                )

    def blank(self, rows: int) -> Batch:
        """A prepared batch of which nothing is seen."""
        values = {
            name: torch.zeros(
                rows, *self.config.modalities[name].shape, dtype=self.dtype, device=self.device
            )
            for name in self.modalities
        }
        shape = (rows, len(self.modalities))
        present = torch.zeros(shape, dtype=torch.bool, device=self.device)
        return Batch(values=values, present=present)


def _of_known_roles(
    networks: Mapping[str, nn.Module], roles: Mapping[str, str]
) -> dict[str, nn.Module]:
    for role in networks:
        if role not in roles:
            known = ", ".join(f"{name!r}: {rule}" for name, rule in roles.items())
            raise ConfigError(
                f"the model has no network of this role; there is {known or 'none'}",
                f"networks.{role}",
            )
    return dict(networks)


def no_network(role: str, name: str) -> ConfigError:
    """The error for a network of the user's own that was not given."""
    return ConfigError(
        f"the model has a custom {role} for {name!r} that its configuration cannot rebuild; pass"
        f" it: {role}s={{{name!r}: network}}",
        f"modalities.{name}.{role}",
    )

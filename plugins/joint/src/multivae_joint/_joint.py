"""What models with a joint encoder share: it gives q(z | x_A, a) for whatever a row has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import component, config, in_range
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.losses import Term
from multivae_core.model import MultimodalVAE
from multivae_core.model_config import ModelConfig
from multivae_core.noise import Step
from multivae_core.priors import kl_to_prior
from multivae_core.private_latents import normal
from multivae_joint._encoder import (
    Features,
    GaussianEncoder,
    MaskedFeatures,
    OwnFeatures,
    build_trunk,
)

__all__ = ["NEEDS_MASK", "SUBSET_RULES", "JointConfig", "JointVAE"]

NEEDS_MASK = (
    "needs a joint encoder that takes rows with holes; give the network an attribute"
    " supports_mask = True and a second argument"
)
"""What an error says after the name of an option."""

SUBSET_RULES = ("poe_corrected", "poe", "poe_with_prior")
"""How often the prior counts in a product of surrogates: once, as often as there are surrogates
in it, or once more."""


@config
class JointConfig(ModelConfig):
    """Options of models with a joint encoder.

    Args:
        joint_encoder: Trunk of the joint encoder. It reads the features of all modalities,
            each out of a network like the encoder of the modality.
        joint_bits: Whether the joint encoder is told which modalities are there.
        modality_dropout: In training the joint encoder is denied each modality of a row with
            this probability, except one; 0.1 to 0.3 where subsets matter. What is decoded does
            not change.
    """

    joint_encoder: Any = component("encoders", default={"type": "mlp", "hidden": [512, 512]})
    joint_bits: bool = True
    modality_dropout: float = attrs.field(default=0.0, validator=in_range(0.0, 0.99))


class JointVAE(MultimodalVAE):
    """A VAE with an encoder that sees all modalities of a row at once."""

    config: JointConfig
    roles: ClassVar[Mapping[str, str]] = {
        "joint_encoder": "{modality: (rows, *shape)} to (rows, features)"
    }

    def __init__(
        self,
        config: JointConfig,
        encoders: Mapping[str, nn.Module] | None = None,
        decoders: Mapping[str, nn.Module] | None = None,
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(config, encoders=encoders, decoders=decoders, networks=networks)
        self.joint_encoder = self._joint_encoder(encoders or {})
        if config.modality_dropout and not self.joint_encoder.supports_mask:
            raise ConfigError(f"must be 0: it {NEEDS_MASK}", "modality_dropout")

    def joint(self, batch: Batch, wanted: Tensor | None = None) -> Normal:
        """q(z | x_A, a) of some rows, ``(B, D)``; N(0, I) in all others.

        Args:
            batch: What the encoder sees.
            wanted: ``(B,)`` bool; None: the rows of which something is seen.
        """
        wanted = batch.something if wanted is None else wanted
        if bool(wanted.all()):
            return normal(self.joint_encoder(batch), 1)
        rows = wanted.nonzero().squeeze(1)
        raw = self.joint_encoder(batch.take(rows))
        return normal(raw.new_zeros(batch.size, *raw.shape[1:]).index_copy(0, rows, raw), 1)

    def shown(self, batch: Batch, step: Step) -> Batch:
        """What the joint encoder may see of every row in training."""
        rate = self.config.modality_dropout
        if not step.training or rate == 0.0:
            return batch
        keys = step.noise.uniform("modality dropout", (1, *batch.present.shape))[0]
        keys = torch.where(batch.present, keys, -1.0)
        return batch.restrict((keys > rate) | (keys == keys.amax(dim=1, keepdim=True)))

    def trainable(self, batch: Batch) -> Tensor | None:
        """``(B,)`` bool, the rows that the joint encoder can be trained on; None: all it can."""
        return None if self.joint_encoder.supports_mask else batch.present.all(dim=1)

    def elbo_terms(
        self,
        q: Normal,
        batch: Batch,
        step: Step,
        weights: Mapping[str, float],
        counted: Tensor | None,
    ) -> dict[str, Term]:
        """The negative ELBO of what rows have, with one draw.

        Args:
            q: Posterior over ``(B, D)``.
            batch: The targets.
            step: Where training stands.
            weights: Weight of every modality's log-likelihood.
            counted: ``(B,)`` bool, rows that count; None: all of which something is seen.
        """
        z = q.sample(1, step.noise, "shared")
        weight = None
        if counted is not None:
            batch = batch.restrict(counted[:, None] & batch.present)
            weight = counted.to(z.dtype)
        log_px = self.weighted_sum(z, batch, weights)[0]
        kl = self.beta(step) * kl_to_prior(q, self.shared_prior, z[0])
        return {"reconstruction": Term(-log_px, weight), "kl": Term(kl, weight)}

    def weighted_sum(self, z: Tensor, batch: Batch, weights: Mapping[str, float]) -> Tensor:
        """Weighted log-likelihood of everything present in nats, ``(n, B, D)`` -> ``(n, B)``."""
        scores = [weights[m] * self.score(m, {"shared": z}, batch) for m in self.modalities]
        return torch.stack(scores).sum(dim=0)

    def likelihood_weights(
        self, step: Step, factors: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Weights of the log-likelihoods: those given or the modalities' own; 1 in evaluation."""
        own = {name: self.likelihood_weight(name, step) for name in self.modalities}
        return own | dict(factors or {}) if step.training else own

    def _joint_encoder(self, custom: Mapping[str, nn.Module]) -> GaussianEncoder:
        size, own = self.config.latent_dim, self.own_networks.get("joint_encoder")
        if own is not None:
            features = OwnFeatures(own, self.config.modalities, self.modalities, "joint_encoder")
            return GaussianEncoder(features, None, size)
        # a network of the user's own serves the surrogate; the joint encoder has a copy
        copies = {name: copy.deepcopy(network) for name, network in custom.items()}
        trunks = {name: Features(*self.encoder_trunk(name, copies)) for name in self.modalities}
        joined = MaskedFeatures(trunks, self.config.joint_bits)
        trunk = build_trunk(self.config.joint_encoder, joined.out_features, "joint_encoder")
        return GaussianEncoder(joined, trunk, size)

"""What models with a joint encoder and one Gaussian surrogate per modality share.

The surrogate q_m(z | x_m) is the encoder of one modality; the posterior of some but not all
modalities is a product of surrogates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, in_range, one_of
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.fusion import Fusion, ProductConfig, ProductFusion
from multivae_core.noise import Step
from multivae_core.posteriors import FactorisedPosterior
from multivae_core.private_latents import normal
from multivae_joint._joint import NEEDS_MASK, SUBSET_RULES, JointConfig, JointVAE
from multivae_joint.attributes import AttributeExperts, AttributePoEEncoder, withheld
from multivae_joint.corrected import CorrectedProduct, CorrectedProductConfig

__all__ = ["SurrogateConfig", "SurrogateVAE", "frozen"]


@config
class SurrogateConfig(JointConfig):
    """Options of models whose surrogates are Gaussians.

    Args:
        subset_encoder: What encodes rows that have some but not all modalities: the
            ``surrogates``, or the joint encoder (``mask_aware``).
        subset_posterior: How surrogates are combined: ``poe_corrected``, in which the prior
            counts once, is exact where the surrogates are; ``poe``, the plain product of
            MultiVae, counts it once per modality; ``poe_with_prior`` once more.
        attribute_dropout: In training, the surrogate of a modality whose encoder is
            ``attribute_poe`` is denied every attribute of a row with this probability: it learns
            to be asked with attributes left open. Its target stays whole.
    """

    subset_encoder: str = attrs.field(
        default="surrogates", validator=one_of("surrogates", "mask_aware")
    )
    subset_posterior: str = attrs.field(default="poe_corrected", validator=one_of(*SUBSET_RULES))
    attribute_dropout: float = attrs.field(default=0.0, validator=in_range(0.0, 1.0))


class SurrogateVAE(JointVAE):
    """A VAE with a joint encoder and one Gaussian surrogate per modality."""

    config: SurrogateConfig

    def __init__(self, config: SurrogateConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        if config.subset_encoder == "mask_aware" and not self.joint_encoder.supports_mask:
            raise ConfigError(f"it {NEEDS_MASK}, or choose 'surrogates'", "subset_encoder")
        sizes = len(self.modalities), config.latent_dim
        self.fusion: Fusion = ProductFusion(ProductConfig(), *sizes)
        if config.subset_posterior == "poe_corrected":
            self.fusion = CorrectedProduct(CorrectedProductConfig(), *sizes)
        self.attributes = [
            name for name in self.modalities if isinstance(self.encoders[name], AttributeExperts)
        ]
        if config.attribute_dropout and not self.attributes:
            raise ConfigError(
                "there are no attributes to deny; give a modality encoder='attribute_poe'",
                "attribute_dropout",
            )

    def build_encoder(self, name: str, custom: Mapping[str, nn.Module]) -> nn.Module:
        """An encoder of a Gaussian; a product of experts where it reads attributes."""
        usual = super().build_encoder(name, custom)
        if not isinstance(trunk := usual.trunk, AttributePoEEncoder):
            return usual
        return AttributeExperts(trunk, self.config.latent_dim, bool(usual.counts))

    def posterior(self, batch: Batch) -> FactorisedPosterior:
        """The joint encoder's for complete rows; see the option ``subset_encoder``."""
        return FactorisedPosterior({"shared": self.or_prior(self.encoded(batch), batch)})

    def encoded(self, batch: Batch) -> Normal:
        """The posterior of rows of which something is seen, N(0, I) in all others."""
        if self.config.subset_encoder == "mask_aware":
            return self.joint(batch)
        complete = batch.present.all(dim=1)
        experts = None if bool(complete.all()) else self.surrogates(batch)
        return self.combined(batch, batch, complete, experts)

    def surrogates(self, batch: Batch, step: Step | None = None) -> Normal:
        """q_m(z | x_m) of every modality, ``(M, B, D)``; in a step see ``attribute_dropout``."""
        rate = self.config.attribute_dropout
        if step is not None and step.training and rate > 0.0:
            batch = withheld(batch, self.attributes, rate, step.noise)
        return normal(self.run_encoders(batch)["shared"], 2)

    def combined(
        self, shown: Batch, batch: Batch, complete: Tensor, experts: Normal | None
    ) -> Normal:
        """The joint encoder's posterior in complete rows, the subset's product in all others.

        Args:
            shown: What the joint encoder sees.
            batch: What is seen.
            complete: ``(B,)`` bool.
            experts: The surrogates, ``(M, B, D)``; None: all rows are complete.
        """
        q = self.joint(shown, complete)
        if experts is None:
            return q
        product, rows = self.subset_posterior(batch, experts), complete[:, None]
        return Normal(
            torch.where(rows, q.mean, product.mean),
            torch.where(rows, q.log_variance, product.log_variance),
        )

    def subset_posterior(self, batch: Batch, experts: Normal) -> Normal:
        """The product of the surrogates of what is present, ``(B, D)``."""
        present = batch.patterns
        prior = None
        if self.config.subset_posterior == "poe_with_prior":
            prior = (present.sum(dim=1) > 1)[None]
        return self.fusion.groups(experts, present[None], prior)[0]


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Record no gradients into the parameters of some modules; those into inputs are."""
    moving = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)

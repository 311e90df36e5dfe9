"""JNF: a joint encoder, and one normalising flow per modality as its surrogate.

With A what a row has and z ~ q(z | x_A), the joint encoder and the decoders learn by

    J = - E_q sum_{m in A} log p(x_m | z) + beta KL(q(z | x_A) || p)

and then, with these frozen, the flows by F = - E_q sum_{m in A} log q_m(z | x_m), which is the sum
of KL(q || q_m) up to a constant (Senellart, Chadebec & Allassonniere 2023, eq. 5 and 6). The
posterior of a subset S of 2 to M - 1 modalities is the product of flows in which the prior counts
once, prod_S q_m(z | x_m) / p(z)^(|S| - 1): it can be sampled, but has no normalised density.
Likelihoods are estimated with the mixture of the flows.

Before, as an option, networks g_m learn embeddings that are correlated between modalities (DCCA,
Andrew et al. 2013), and q_m sees g_m(x_m) in place of x_m.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import config, each, one_of, positive
from multivae_core.correlation import check_size, sum_of_correlations
from multivae_core.data import Batch
from multivae_core.errors import ConfigError
from multivae_core.losses import LossOutput, Term
from multivae_core.networks.heads import ModalityEncoder, PerModality
from multivae_core.noise import Step
from multivae_core.posteriors import LatentName, Posterior
from multivae_core.private_latents import check_names
from multivae_core.stages import Player, Stage
from multivae_joint._dcca import Embedded, embed
from multivae_joint._flow_posterior import FlowPosterior, FlowProposal
from multivae_joint._flows import FLOWS, FlowExperts, LatentFlow
from multivae_joint._joint import SUBSET_RULES, JointConfig, JointVAE
from multivae_joint._sampling import HMC

__all__ = ["JNF", "JNFConfig"]


@config
class JNFConfig(JointConfig):
    """Options of JNF beside those of every model with a joint encoder.

    Args:
        flow_type: ``maf``: densities take one pass, draws one per dimension; ``nsf``: the same
            with splines on [-5, 5]; ``iaf``: the reverse, slow in training and in HMC;
            ``realnvp``: both in one pass.
        flow_types: The same for single modalities, in place of ``flow_type``.
        flow_context: ``context``: the flow depends on what the encoder gives, its base is
            N(0, I); ``base``: one flow for all rows, the encoder gives the base (MultiVae).
        context_dim: Size of the context; even.
        transforms: Transforms per flow.
        hidden: Hidden layers of each transform.
        passes: Passes of the slow direction of maf, nsf and iaf, for large latents: 2 makes
            them couplings; None: as many as there are dimensions.
        n_samples: Draws of z per row and step for F.
        flow_rows: Rows that teach the flows: ``all``, with what they have, or the ``complete``
            ones, which is also the rule for a joint encoder of one's own without
            ``supports_mask``.
        min_available: Least number of modalities of a row that teaches the flows; 2 leaves out
            rows whose only posterior is that of the very modality.
        sampler: How products of flows are sampled: ``hmc``, whose chains seldom cross between
            modes; ``sir``, by resampling candidates of the mixture, ten times faster; ``auto``,
            that where the effective number of candidates is above 5, otherwise the first;
            ``mask_aware``: by the joint encoder in their place.
        subset_posterior: How often the prior counts in a product of flows: once
            (``poe_corrected``), once per flow (``poe``), or once more (``poe_with_prior``).
            MultiVae divides it out once, which is right for two.
        hmc_steps: Moves of a chain, burn-in included.
        leapfrog_steps: Leapfrog steps per move.
        step_size: Where the adaptation of the step size starts.
        candidates: Candidates per sample of ``sir``.
        point: Point estimate of one modality: the posterior ``mean``, over ``n_mean`` draws, or
            the image of the ``base``'s mean, which is neither mean nor mode (MultiVae).
        n_mean: Draws that the mean of a posterior without closed form is taken over.
        dcca_dim: Size k of the embeddings that the surrogates see; None: they see the data. Pairs
            of modalities with fewer than 4 k rows in a batch are left out.
        dcca_top: How many correlations of a pair count, the largest first; None: all k.
        dcca_rescale: Whether the surrogates see embeddings brought to [0, 1] by the extremes that
            their own stage has shown.
    """

    flow_type: str = attrs.field(default="maf", validator=one_of(*FLOWS))
    flow_types: dict[str, str] = attrs.field(factory=dict, validator=each(one_of(*FLOWS)))
    flow_context: str = attrs.field(default="context", validator=one_of("context", "base"))
    context_dim: int = attrs.field(default=64, validator=positive)
    transforms: int = attrs.field(default=3, validator=positive)
    hidden: tuple[int, ...] = attrs.field(
        default=(128, 128), validator=attrs.validators.deep_iterable(positive)
    )
    passes: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive))
    n_samples: int = attrs.field(default=1, validator=positive)
    flow_rows: str = attrs.field(default="all", validator=one_of("all", "complete"))
    min_available: int = attrs.field(default=1, validator=positive)
    sampler: str = attrs.field(default="hmc", validator=one_of("hmc", "sir", "auto", "mask_aware"))
    subset_posterior: str = attrs.field(default="poe_corrected", validator=one_of(*SUBSET_RULES))
    hmc_steps: int = attrs.field(default=100, validator=positive)
    leapfrog_steps: int = attrs.field(default=10, validator=positive)
    step_size: float = attrs.field(default=0.05, validator=positive)
    candidates: int = attrs.field(default=64, validator=positive)
    point: str = attrs.field(default="mean", validator=one_of("mean", "base"))
    n_mean: int = attrs.field(default=64, validator=positive)
    dcca_dim: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive))
    dcca_top: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive))
    dcca_rescale: bool = False

    def __attrs_post_init__(self) -> None:
        check_names(self, "flow_types")
        if self.context_dim % 2:
            raise ConfigError(f"must be even, got {self.context_dim}", "context_dim")
        if self.dcca_dim is None and (self.dcca_top is not None or self.dcca_rescale):
            option = "dcca_rescale" if self.dcca_top is None else "dcca_top"
            raise ConfigError("there are no embeddings; set dcca_dim", option)
        if self.dcca_top is not None and self.dcca_top > (self.dcca_dim or 0):
            raise ConfigError(f"must be at most dcca_dim={self.dcca_dim}", "dcca_top")
        if self.dcca_dim is not None and len(self.modalities) == 1:
            raise ConfigError("one modality has no correlations; leave it out", "dcca_dim")


class JNF(JointVAE):
    """Joint VAE with normalising flows (Senellart, Chadebec & Allassonniere 2023)."""

    config: JNFConfig
    lacks: Mapping[str, str] = {
        "posterior_density": "the posterior of 2 to M - 1 modalities is a product of flows, whose"
        " constant is unknown; likelihoods are estimated with the mixture of the flows",
    }

    def __init__(self, config: JNFConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        if config.sampler == "mask_aware" and not self.joint_encoder.supports_mask:
            raise ConfigError(
                "'mask_aware' needs a joint encoder that takes rows with holes; choose 'hmc'",
                "sampler",
            )
        context = config.context_dim if config.flow_context == "context" else 0
        shape = (config.latent_dim, context, config.transforms, config.hidden, config.passes)
        kinds = {name: config.flow_types.get(name, config.flow_type) for name in self.modalities}
        self.flows = PerModality({name: LatentFlow(kind, *shape) for name, kind in kinds.items()})
        if config.dcca_rescale:
            self.lacks = {**self.lacks, "row_objective": "its embeddings' scale follows batches"}

    def build_encoder(self, name: str, custom: Mapping[str, nn.Module]) -> nn.Module:
        """What a flow depends on; see the options ``flow_context`` and ``dcca_dim``."""
        trunk, counts = self.encoder_trunk(name, custom)
        if (size := self.config.dcca_dim) is not None:
            trunk = Embedded(trunk, size, self.config.hidden, self.config.dcca_rescale)
        return ModalityEncoder(trunk, self.encoder_latents(name), counts=counts)

    def encoder_latents(self, name: str) -> dict[LatentName, int]:
        """Half of what the encoder gives: it has two outputs of a size."""
        base = self.config.flow_context == "base"
        return {"shared": self.config.latent_dim if base else self.config.context_dim // 2}

    def posterior(self, batch: Batch) -> Posterior:
        """The joint encoder's in complete rows, a flow, or a product of flows."""
        own = self.config
        members = self._members(batch)
        if own.sampler == "mask_aware":
            members = members & (members.sum(dim=1, keepdim=True) == 1)
        chain = HMC(steps=own.hmc_steps, leapfrog=own.leapfrog_steps, step_size=own.step_size)
        return FlowPosterior(
            *self._parts(batch, members), batch, self.shared_prior, self.config, chain
        )

    def proposal(self, batch: Batch) -> Posterior:
        """The joint encoder's in complete rows, in others the mixture of the flows."""
        return FlowProposal(*self._parts(batch, self._members(batch)))

    def stages(self) -> tuple[Stage, ...]:
        """The embeddings, if there are any, the joint VAE, the flows."""
        encoders: list[Any] = [self.encoders[name] for name in self.modalities]
        joint = Player(
            name="joint",
            parameters=(self.joint_encoder, self.decoders, self.shared_prior),
            loss=self._joint_pieces,
        )
        followers: tuple[nn.Module, ...] = (self.encoders, self.flows)
        before: tuple[Stage, ...] = ()
        if self.config.dcca_dim is not None:
            embeddings = tuple(encoder.trunk.embedding for encoder in encoders)
            player = Player(name="dcca", parameters=embeddings, loss=self._dcca_pieces)
            before = (Stage(name="dcca", players=(player,)),)
            followers = (
                *(encoder.trunk.after for encoder in encoders),
                *(encoder.head for encoder in encoders),
                self.flows,
            )
        flows = Player(name="flows", parameters=followers, loss=self._flow_pieces)
        return (
            *before,
            Stage(name="joint", players=(joint,)),
            Stage(name="flows", players=(flows,), start_from="best"),
        )

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """J and F; no gradient of F reaches the joint encoder."""
        return LossOutput(terms=self._joint_terms(batch, step) | self._flow_terms(batch, step))

    def experts(self, batch: Batch) -> FlowExperts:
        """The flow posteriors of all modalities; the encoders run here and nowhere else."""
        flows = {name: self.flows[name] for name in self.modalities}
        conditional = self.config.flow_context == "context"
        return FlowExperts(flows, self.run_encoders(batch)["shared"], conditional)

    def _joint_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        yield LossOutput(terms=self._joint_terms(batch, step))

    def _flow_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        yield LossOutput(terms=self._flow_terms(batch, step))

    def _dcca_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        """Minus the correlations of all pairs of modalities, in rows of one process with both."""
        if step.number == 0 and self.config.dcca_dim is not None:
            check_size(batch, 4 * self.config.dcca_dim)
        total = -sum_of_correlations(
            lambda name, rows: embed(self.encoders[name], name, rows), batch, self.config.dcca_top
        )
        rows = torch.tensor(float(batch.size), dtype=self.dtype, device=self.device)
        yield LossOutput(terms={"correlation": Term(total, rows)})

    def _joint_terms(self, batch: Batch, step: Step) -> dict[str, Term]:
        counted = self.trainable(batch)
        q = self.joint(self.shown(batch, step), counted)
        return self.elbo_terms(q, batch, step, self.likelihood_weights(step), counted)

    def _flow_terms(self, batch: Batch, step: Step) -> dict[str, Term]:
        counted = batch.present.sum(dim=1) >= self.config.min_available
        if self.config.flow_rows == "complete" or not self.joint_encoder.supports_mask:
            counted = batch.present.all(dim=1)
        with torch.no_grad():
            q = self.joint(batch, counted)
            z = q.sample(self.config.n_samples, step.noise, "flows")
        log_q = self.experts(batch).log_probs(z, batch.present & counted[:, None])
        return {"flows": Term(-log_q.sum(dim=2).mean(dim=0), counted.to(z.dtype))}

    def _members(self, batch: Batch) -> Tensor:
        """``(B, M)`` bool, the flows that speak about a row: none about complete rows."""
        return batch.present & ~batch.present.all(dim=1, keepdim=True)

    def _parts(self, batch: Batch, members: Tensor) -> tuple[Any, FlowExperts, Tensor]:
        """The Gaussian of the rows without members, the experts, and the members."""
        q = self.joint(batch, batch.something & ~members.any(dim=1))
        return self.or_prior(q, batch), self.experts(batch.restrict(members)), members

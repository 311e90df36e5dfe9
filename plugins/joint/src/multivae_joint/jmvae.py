"""JMVAE: a joint encoder, and one surrogate per modality that is drawn to it.

With A what a row has, the joint encoder q(z | x_A) and the surrogates q_m(z | x_m),

    L = - E_q sum_{m in A} log p(x_m | z) + beta KL(q(z | x_A) || p)
        + alpha sum_{m in A} KL(q(z | x_A) || q_m(z | x_m))

(Suzuki et al. 2016, eq. 8). The first two terms are a bound on log p(x_A). The optimum of q_m is
the average of q over what else a row has, with matched moments: E[p(z | x_A) | x_m] = p(z | x_m)
for every A with m, so that rows with holes draw it to the same place, if what is missing does not
depend on the other modalities given x_m.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from multivae_core.config import config, each, non_negative, one_of
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.losses import LossOutput, Term
from multivae_core.noise import Step
from multivae_core.private_latents import check_names
from multivae_joint._surrogate import SurrogateConfig, SurrogateVAE
from multivae_joint.corrected import CorrectedProduct

__all__ = ["JMVAE", "JMVAEConfig"]


@config
class JMVAEConfig(SurrogateConfig):
    """Options of JMVAE beside those of every model with surrogates.

    Args:
        alpha: Weight of the surrogates' divergences, which are summed over the modalities.
        alphas: Weights of single modalities, in place of ``alpha``.
        anneal: What ``beta_schedule`` multiplies: ``all`` divergences, as in MultiVae, or the
            one to the ``prior`` alone, as in the authors' code.
        detach_joint: Whether the surrogates follow the joint encoder without disturbing it.
        incomplete: How rows with holes are trained on. ``mask_aware``: the joint encoder takes
            what is there. ``surrogate_poe``: the product of the surrogates takes its place, from
            the end of ``beta_schedule`` on and without divergences between the two; this is also
            the rule for a joint encoder of one's own without ``supports_mask``.
            ``complete_only``: they are left out.

    JMVAE-zero, which has no surrogates, is alpha=0 with subset_encoder="mask_aware".
    """

    alpha: float = attrs.field(default=0.1, validator=non_negative)
    alphas: dict[str, float] = attrs.field(factory=dict, validator=each(non_negative))
    anneal: str = attrs.field(default="all", validator=one_of("all", "prior"))
    detach_joint: bool = False
    incomplete: str = attrs.field(
        default="mask_aware", validator=one_of("mask_aware", "surrogate_poe", "complete_only")
    )

    def __attrs_post_init__(self) -> None:
        check_names(self, "alphas")


class JMVAE(SurrogateVAE):
    """Joint multimodal VAE (Suzuki, Nakayama & Matsuo 2016), JMVAE-kl."""

    config: JMVAEConfig

    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The negative ELBO and, as a third term, the divergences to the surrogates."""
        rule, complete = self._rule(), batch.present.all(dim=1)
        experts = self.surrogates(batch, step)
        shown = self.shown(batch, step)
        if rule == "mask_aware":
            counted, joint = None, batch.something
            q = self.joint(shown)
        elif rule == "complete_only":
            counted, joint = complete, complete
            q = self.joint(shown, complete)
        else:
            ready = self._ramp(step) == 1.0
            counted, joint = complete | (batch.something & ready), complete
            q = self.combined(shown, batch, complete, experts)
        weights = self.likelihood_weights(step)
        terms = self.elbo_terms(q, batch, step, weights, counted)
        # a surrogate of what the joint encoder did not see has nothing to follow
        near = self._divergences(q, experts, shown.present & joint[:, None])
        ramp = self._ramp(step) if self.config.anneal == "all" else 1.0
        alphas = [self.config.alphas.get(name, self.config.alpha) for name in self.modalities]
        pull = ramp * near.new_tensor(alphas) @ near
        terms["surrogates"] = Term(pull, terms["kl"].weight)
        metrics = {"surrogate_kl": near.sum(dim=0).detach()}
        if rule == "surrogate_poe" and isinstance(self.fusion, CorrectedProduct):
            clamped = self.fusion.clamped(experts, batch.present[None])[0]
            metrics["clamped"] = torch.where(complete, 0.0, clamped)
        return LossOutput(terms=terms, metrics=metrics)

    def _rule(self) -> str:
        own = self.config.incomplete
        masked = self.joint_encoder.supports_mask
        return "surrogate_poe" if own == "mask_aware" and not masked else own

    def _ramp(self, step: Step) -> float:
        ramp = self.config.beta_schedule
        return 1.0 if ramp is None else ramp(step)

    def _divergences(self, q: Normal, experts: Normal, valid: Tensor) -> Tensor:
        """KL(q || q_m), ``(M, B)``; 0 where there is nothing to compare."""
        q = q.detach() if self.config.detach_joint else q
        return torch.where(valid.T, Normal(q.mean[None], q.log_variance[None]).kl(experts), 0.0)

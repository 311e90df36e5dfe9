"""VampPrior: the mixture of the model's own posteriors of learned pseudo-inputs.

    p(z) = sum_k pi_k q(z | u_k),   u_k one made-up row with all modalities

(Tomczak & Welling 2018, eq. 9; there pi_k = 1/K). Pseudo-inputs live where the data live, on the
model's scale, and go through its encoders and its fusion: the prior moves with the encoders. A
mixture of free Gaussians is another prior, ``gmm``.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from multivae_core.config import config, non_negative, positive
from multivae_core.data import Batch, IncompleteDataset
from multivae_core.distributions import Laplace, Mixture, Normal
from multivae_core.errors import ConfigError, DataError
from multivae_core.estimation import raw_batches
from multivae_core.model_networks import MultimodalNetworks
from multivae_mixture_prior.mixture import MixturePrior

__all__ = ["VampPrior", "VampPriorConfig"]

_LEAST_COUNT = 1e-3


@config
class VampPriorConfig:
    """A mixture of posteriors of pseudo-inputs.

    Args:
        n_components: Number K of pseudo-inputs.
        learn_weights: Whether the mixture's weights are learned; in the paper they are equal.
        spread: Standard deviation of the pseudo-inputs at the start, on the model's scale; see
            `VampPrior.start_from` for a start at rows of data.
    """

    n_components: int = attrs.field(default=50, validator=positive)
    learn_weights: bool = False
    spread: float = attrs.field(default=1.0, validator=non_negative)


class VampPrior(MixturePrior):
    """The mixture of the posteriors of pseudo-inputs."""

    _model: tuple[MultimodalNetworks, ...] = ()

    def __init__(self, config: VampPriorConfig, latent_dim: int) -> None:
        super().__init__(config, latent_dim)
        weights = torch.zeros(config.n_components)
        self.logits = nn.Parameter(weights, requires_grad=config.learn_weights)

    def bind(self, model: MultimodalNetworks) -> None:
        """See `Prior.bind`; the pseudo-inputs get the shapes of the model's modalities."""
        self._model = (model,)  # in a tuple, so that it does not become a submodule
        count, spread = self.config.n_components, self.config.spread
        self.inputs = nn.ParameterList(
            spread * torch.randn(count, *model.config.modalities[name].shape)
            for name in model.modalities
        )

    def parts(self) -> tuple[Normal | Laplace, Tensor]:
        """See `MixturePrior.parts`; a mixture as posterior adds its components one by one."""
        model, weights = self._bound(), self.logits.softmax(dim=0)
        posterior = model.posterior(self.pseudo_batch())  # type: ignore[operator]
        shared = getattr(posterior, "parts", {}).get("shared")
        if isinstance(shared, Normal | Laplace):
            return shared, weights
        if isinstance(shared, Mixture):
            own, shares = shared.components, weights * shared.weights.T
            places = torch.arange(shares.numel(), device=shares.device)
            component, row = places // len(weights), places % len(weights)
            return own[component, row], shares.flatten()
        raise ConfigError(
            f"{type(model).__name__} has no posterior of the shared latent that is made of"
            " Gaussians or Laplaces, which vamp needs; choose prior='gmm' or 'flow'",
            "prior",
        )

    def pseudo_batch(self) -> Batch:
        """The pseudo-inputs as rows of which everything is seen, on the model's scale."""
        model = self._bound()
        values = {
            name: functional.softplus(raw) if self._counts(name) else raw
            for name, raw in zip(model.modalities, self.inputs, strict=True)
        }
        shape = (self.config.n_components, len(values))
        everything = torch.ones(shape, dtype=torch.bool, device=self.logits.device)
        return Batch(values=values, present=everything)

    @torch.no_grad()
    def start_from(self, data: IncompleteDataset | Batch, seed: int = 0) -> None:
        """Put the pseudo-inputs at rows of the data of which every modality is there.

        Args:
            data: Rows on their own scale.
            seed: Of the choice among the rows.

        Raises:
            DataError: Fewer such rows than pseudo-inputs.
        """
        model, count = self._bound(), self.config.n_components
        rows = data.size if isinstance(data, Batch) else len(data)
        batch = model.prepare(next(raw_batches(data, rows)))
        whole = batch.present.all(dim=1).nonzero().squeeze(1).cpu()
        if len(whole) < count:
            raise DataError(
                f"start_from: {len(whole)} rows have every modality, and there are {count}"
                " pseudo-inputs; pass more rows, or lower n_components"
            )
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
        chosen = batch.take(whole[order[:count]].to(batch.present.device))
        for name, raw in zip(model.modalities, self.inputs, strict=True):
            value = chosen.values[name]
            if self._counts(name):  # what softplus makes the count
                value = value.clamp_min(_LEAST_COUNT)
                value = value + (-torch.expm1(-value)).log()
            raw.copy_(value)

    def _bound(self) -> MultimodalNetworks:
        if not self._model:
            raise ConfigError(
                "vamp is made of the encoders of a model, and this model's prior is not bound to"
                " it; choose prior='gmm' or 'flow'",
                "prior",
            )
        return self._model[0]

    def _counts(self, name: str) -> bool:
        """Whether an encoder sees log(1 + x): its pseudo-inputs must not be negative."""
        return bool(getattr(self._bound().encoders[name], "counts", False))

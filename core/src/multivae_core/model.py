"""`MultimodalVAE`: what a model author overrides, and what every model gets for it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from multivae_core import estimation, inference, saving
from multivae_core.data.batch import Batch
from multivae_core.distributions import Distribution
from multivae_core.errors import CapabilityError
from multivae_core.likelihoods import Likelihood
from multivae_core.losses import LossOutput
from multivae_core.model_networks import MultimodalNetworks
from multivae_core.noise import Step
from multivae_core.posteriors import (
    JointPrior,
    LatentName,
    LatentPrior,
    Latents,
    Posterior,
)
from multivae_core.priors import OrPrior, StandardNormal
from multivae_core.stages import Player, Stage

if TYPE_CHECKING:
    from multivae_core.data import IncompleteDataset
    from multivae_core.estimation import Estimate

__all__ = ["MultimodalVAE"]

_NEED_DENSITIES = ("joint_likelihood", "conditional_likelihood", "loss_is_bound")


class MultimodalVAE(MultimodalNetworks):
    """A variational autoencoder over several modalities with holes.

    An author overrides `posterior` and `loss`, and where the model needs it `prior`,
    `decode_one`, `proposal`, `loss_pieces`, `stages` and `private_dims`. These hooks get
    *prepared* batches: on the model's scale, in its order, zeros under holes. The verbs take
    data as they are.
    """

    lacks: Mapping[str, str] = {}
    """Capability that the model does not have, of its class or with its options -> the reason."""

    representation: tuple[LatentName, ...] = ("shared",)
    """The latents that `embed` returns."""

    def __init__(
        self,
        config: Any,
        encoders: Mapping[str, nn.Module] | None = None,
        decoders: Mapping[str, nn.Module] | None = None,
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(config, encoders, decoders, networks)
        if name := next(filter(self._is_no_density, self.decoded), None):
            own = self.decoders[name].likelihood.name
            reason = f"{own!r} of {name!r} is no density; choose another likelihood, as 'normal'"
            self.lacks = {**dict.fromkeys(_NEED_DENSITIES, reason), **self.lacks}

    def _is_no_density(self, name: str) -> bool:
        head = getattr(self.decoders[name], "likelihood", None)
        return not getattr(getattr(head, "result", None), "is_density", True)

    @abstractmethod
    def posterior(self, batch: Batch) -> Posterior:
        """What is believed about every latent, given what the batch shows."""

    @abstractmethod
    def loss(self, batch: Batch, step: Step) -> LossOutput:
        """The objective, per row and in nats, to be minimised."""

    def loss_pieces(self, batch: Batch, step: Step) -> Iterator[LossOutput]:
        """The objective in pieces that are sent backward one by one; default: one piece."""
        yield self.loss(batch, step)

    def prior(self, batch: Batch) -> LatentPrior:
        """The prior over all latents."""
        return JointPrior(self.shared_prior, self.latent_sizes)

    def proposal(self, batch: Batch) -> Posterior:
        """What importance sampling draws from; it must have a density."""
        return self.posterior(batch)

    def stages(self) -> tuple[Stage, ...]:
        """Who is trained when; default: everything at once."""
        player = Player(name="model", parameters=(self,), loss=self.loss_pieces)
        return (Stage(name="train", players=(player,)),)

    def likelihood_weight(self, name: str, step: Step) -> float:
        """Weight of a modality's log-likelihood: 1 outside training."""
        return float(self.config.modalities[name].weight) if step.training else 1.0

    def reconstruction(
        self, latents: Latents, batch: Batch, step: Step, valid: Tensor | None = None
    ) -> Tensor:
        """Weighted log-likelihood of everything present, ``(n, B)`` nats; see `score`."""
        total = self.weighted_score(self.decoded[0], latents, batch, step, valid)
        for name in self.decoded[1:]:
            total = total + self.weighted_score(name, latents, batch, step, valid)
        return total

    def weighted_score(
        self,
        name: str,
        latents: Latents,
        batch: Batch,
        step: Step,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Log-likelihood of one modality times its weight in training; see `score`."""
        scores = self.score(name, latents, batch, valid)
        weight = self.likelihood_weight(name, step)
        return scores if weight == 1.0 else weight * scores

    def or_prior(self, q: Distribution, batch: Batch) -> Distribution:
        """The posterior of the shared latent out of one that is N(0, I) where nothing is seen."""
        if isinstance(self.shared_prior, StandardNormal) or bool(batch.something.all()):
            return q
        return OrPrior(q, self.shared_prior, batch.something)

    def beta(self, step: Step) -> float:
        """Weight of the divergences: 1 outside training."""
        if not step.training:
            return 1.0
        ramp = self.config.beta_schedule
        return float(self.config.beta) * (1.0 if ramp is None else ramp(step))

    def require(self, capability: str) -> None:
        """Raise `CapabilityError`, with the reason, if the model cannot do this."""
        if capability in self.lacks:
            raise CapabilityError(
                f"{type(self).__name__} has no {capability}: {self.lacks[capability]}"
            )

    def encode(
        self, data: IncompleteDataset | Batch, n_samples: int | None = None, seed: int = 0
    ) -> Latents:
        """Encode what is seen of every row; restrict the data to condition on less.

        Args:
            data: N rows.
            n_samples: Samples per row; None: the mean of the posterior.
            seed: Seed of the samples.

        Returns:
            Latent -> ``(N, *event)`` means, or ``(n, N, *event)`` samples.
        """
        return inference.encode(self, data, n_samples, seed)

    def embed(
        self,
        data: IncompleteDataset | Batch,
        latents: tuple[LatentName, ...] | str = "representation",
    ) -> Tensor:
        """Embed every row: the posterior mean of some latents side by side, ``(N, D)``.

        Args:
            data: N rows.
            latents: Names of latents; by default the model's `representation`.
        """
        return inference.embed(self, data, latents)

    def decode(
        self, latents: Mapping[LatentName, Tensor], data: Batch | None = None
    ) -> dict[str, Likelihood]:
        """Decode latents to the likelihood of every modality, on the scale of the data.

        Args:
            latents: Latent -> ``(N, *event)`` or ``(n, N, *event)``.
            data: What was seen, for models whose decoders look at it.
        """
        return inference.decode(self, latents, data)

    def generate(
        self, n: int, seed: int = 0, output: inference.Output = "mean"
    ) -> dict[str, Tensor]:
        """Generate rows out of the prior.

        Args:
            n: Number of rows.
            seed: Seed of latents and values.
            output: The decoder's mean, or a draw from its likelihood.

        Returns:
            Modality -> ``(n, *shape)`` on the scale of the data.

        Raises:
            CapabilityError: The model cannot generate without a condition.
        """
        return inference.generate(self, n, seed, output)

    def predict(
        self,
        data: IncompleteDataset | Batch,
        targets: tuple[str, ...] | None = None,
        n_samples: int = 100,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Predict modalities from what is seen: means of the posterior predictive.

        Args:
            data: N rows.
            targets: Modalities to predict; None: all.
            n_samples: Samples of the latents per row.
            seed: Seed of the samples.

        Returns:
            Modality -> ``(N, *shape)`` on the scale of the data.
        """
        return inference.predict(self, data, targets, n_samples, seed)

    def impute(
        self,
        data: IncompleteDataset | Batch,
        targets: tuple[str, ...] | None = None,
        n_samples: int = 200,
        quantiles: tuple[float, ...] = (0.05, 0.5, 0.95),
        keep_samples: bool = False,
        seed: int = 0,
    ) -> inference.Imputation:
        """Fill every hole, many times over: multiple imputation with its uncertainty.

        Args:
            data: N rows; restrict them to impute what was in fact seen.
            targets: Modalities to impute; None: all.
            n_samples: Draws per row.
            quantiles: Levels of the quantiles of the draws, at the ranks (n+1)p.
            keep_samples: Whether the draws themselves are returned.
            seed: Seed of the draws.
        """
        return inference.impute(self, data, targets, n_samples, quantiles, keep_samples, seed)

    def elbo(
        self,
        data: IncompleteDataset | Batch,
        n_samples: int = 10,
        seed: int = 0,
        latent_rows: int = estimation.LATENT_ROWS,
    ) -> Estimate:
        """Evidence lower bound of what is observed, beta = 1, nats per row.

        Args:
            data: N rows, complete or not.
            n_samples: Samples per row.
            seed: Seed of the samples.
            latent_rows: Latent rows per decoder call; it changes speed alone.
        """
        return estimation.elbo(self, data, n_samples, seed, latent_rows)

    def log_likelihood(
        self,
        data: IncompleteDataset | Batch,
        n_samples: int = 1000,
        seed: int = 0,
        latent_rows: int = estimation.LATENT_ROWS,
    ) -> Estimate:
        """Estimate log p(observed) of every row by importance sampling (Burda et al. 2016, eq. 8).

        In expectation a lower bound that rises with the number of samples; training weights and
        beta play no part.

        Args:
            data: N rows, complete or not.
            n_samples: Samples K per row.
            seed: Seed of the samples.
            latent_rows: Latent rows per decoder call; it changes speed alone.

        Returns:
            Nats per row on the scale of the data, with Monte-Carlo error and effective sample
            size.

        Raises:
            CapabilityError: The model has no joint likelihood.
        """
        return estimation.log_likelihood(self, data, n_samples, seed, latent_rows)

    iwae = log_likelihood

    def conditional_log_likelihood(
        self,
        data: IncompleteDataset | Batch,
        given: tuple[str, ...],
        targets: tuple[str, ...],
        n_samples: int = 1000,
        seed: int = 0,
        latent_rows: int = estimation.LATENT_ROWS,
    ) -> Estimate:
        """Estimate log p(targets | given) as a difference of two importance-sampled values.

        Each has a proposal of its own. The difference of two lower bounds is not a bound.

        Args:
            data: N rows; of targets and given, what is observed in a row counts.
            given: Modalities that are conditioned on.
            targets: Modalities that are scored.
            n_samples: Samples K per row for each of the two.
            seed: Seed of the samples.
            latent_rows: Latent rows per decoder call; it changes speed alone.

        Raises:
            CapabilityError: The model has no conditional likelihood.
            DataError: A modality that is unknown, or both given and a target.
        """
        return estimation.conditional_log_likelihood(
            self, data, given, targets, n_samples, seed, latent_rows
        )

    def save(self, folder: str | Path, summary: Mapping[str, Any] | None = None) -> None:
        """Save as a model folder, atomically: config.json, model.safetensors, README.md.

        Args:
            folder: Where to; a model that is there is replaced.
            summary: What the model card says about data and metrics.
        """
        saving.save_model(self, folder, summary=summary)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload the model folder to a repository of the hub."""
        return saving.push_to_hub(self, repo, **options)

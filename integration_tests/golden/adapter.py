"""What all adapters share: options that must be known, and a model with the golden's weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

import multivae_core as mv
from multivae_core.config import structure
from multivae_core.distributions import Mixture, Normal
from multivae_core.noise import NoiseSource
from multivae_core.posteriors import LatentName

from .case import Case, CaseError, Entry, Networks

__all__ = [
    "Adapter",
    "Built",
    "Options",
    "flag",
    "installed_as",
    "mapping",
    "number",
    "plain",
    "whole",
]


@attrs.frozen
class Built:
    """Our model with the golden's weights.

    Args:
        model: In float64.
        networks: Where the golden's weight tensors are in it.
    """

    model: mv.MultimodalVAE
    networks: Networks


class Options:
    """The options of a case; each must be taken, with a value that is known."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self._where = where

    def take(self, key: str, default: Any, allowed: Callable[[Any], bool]) -> Any:
        """Take one option; None, where the default is not, is like leaving it out."""
        value = self._values.pop(key, default)
        value = default if value is None else value
        if value is not None and not allowed(value):
            raise CaseError(f"{self._where}: {key} has a value that is not known: {value!r}")
        return value

    def same(self, key: str, expected: Any) -> None:
        """Take an option that repeats what the case says elsewhere."""
        if self.take(key, expected, lambda _: True) != expected:
            raise CaseError(f"{self._where}: {key} contradicts the case, which has {expected!r}")

    def close(self) -> None:
        """Refuse what nobody took."""
        if self._values:
            raise CaseError(f"{self._where}: options that are not known: {self._values!r}")


def flag(value: Any) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def number(value: Any) -> bool:
    """Whether it is a finite number of at least 0."""
    return isinstance(value, int | float) and not flag(value) and 0 <= value < float("inf")


def whole(value: Any) -> bool:
    """Whether it is a whole number of at least 0."""
    return isinstance(value, int) and number(value)


def mapping(value: Any) -> bool:
    """Whether it is a mapping."""
    return isinstance(value, dict)


class Adapter(ABC):
    """What one model of the golden is in our library.

    Args:
        case: A case of that model.
    """

    peer: ClassVar[str] = "multivae "
    """Whose options the adapter knows; other libraries use the same words differently."""

    rescales: ClassVar[bool] = False
    """Whether the peer's likelihoods are rescaled unless it is told not to."""

    known_extra: ClassVar[frozenset[str]] = frozenset()
    """Keys of a case beside the usual ones, and of its ``extra``, that the adapter reads."""

    encoded: ClassVar[LatentName] = "shared"
    """The latent that the golden calls the code of a row."""

    array_tolerance: ClassVar[Mapping[str, float]] = {"complete": 1e-8, "incomplete": 1e-8}
    """Relative; the least that any deterministic number of such data must agree to."""

    def __init__(self, case: Case) -> None:
        self.case = case
        peer = str(case.content["peer"])
        further = {*case.content["extra"], *case.unknown_keys} - self.known_extra
        if not peer.startswith(self.peer) or further:
            raise CaseError(
                f"{case.name}: peer {peer!r} and keys {sorted(further)} are not known to"
                f" {type(self).__name__}"
            )
        config = Options(case.config, f"{case.name}: config")
        self.weights = self._common(config)
        self.arguments = Options(case.content["forward_arguments"], f"{case.name}: forward")
        self.options = self.translate(config)
        for training_argument in ("epoch", "batch_ratio"):
            self.arguments.take(training_argument, 0, number)
        config.close()
        self.arguments.close()

    @abstractmethod
    def translate(self, config: Options) -> dict[str, Any]:
        """Our options for all questions, out of the peer's."""

    def options_for(self, entry: Entry) -> dict[str, Any]:
        """Further options of ours that meet this one question; see PARITY.md."""
        return {}

    def further(self, networks: Networks) -> dict[str, Any]:
        """The user's own networks beside encoders and decoders, as our model takes them."""
        return {}

    def own_arguments(self, entry: Entry) -> None:
        """Take the arguments that replace the case's for one entry; default: refuse them."""
        if entry.fields.get("forward_arguments"):
            raise CaseError(
                f"entry {entry.number} has arguments of its own, which this adapter does not read"
            )

    def load_encoders(self, built: Built) -> None:
        """Load the heads of the encoders."""
        built.networks.load_heads(built.model.encoders)

    def load(self, built: Built) -> None:
        """Load the weights that belong to no network; default: there are none."""
        for name in self.case.tensors:
            if name.startswith("prior."):
                raise CaseError(f"{self.case.name}: our prior has no place for {name}")

    def build(
        self, entry: Entry, weights: Mapping[str, float] | None = None, **options: Any
    ) -> Built:
        """Build our model for a question.

        Args:
            entry: The question.
            weights: Weights of the likelihoods in training; None: those of the case.
            options: Options of ours in place of those that meet the question.
        """
        modalities = {
            name: {**given, "weight": float((weights or self.weights)[name])}
            for name, given in self.case.modalities().items()
        }
        name = installed_as(self.case.model)
        if name is None:
            raise CaseError(f"{self.case.model} is not installed")
        kind: Any = mv.registry.models.load_config(name)
        given = {"modalities": modalities, "latent_dim": self.case.latent_dim}
        config: Any = structure(kind, given | self.options | self.options_for(entry) | options)
        networks = self.case.networks(entry["variant"])
        model = mv.registry.models.load(name)(
            config,
            **{
                "encoders": networks.encoders,
                "decoders": networks.decoders,
                **self.further(networks),
            },
        )
        built = Built(model.double(), networks)
        self.load_encoders(built)
        self.load(built)
        return built

    def widen(self, built: Built) -> None:
        """Let every encoder say almost nothing: the posterior is then close to the prior."""
        for name in self.case.order:
            encoder: Any = built.model.encoders[name]
            with torch.no_grad():
                encoder.head.weight.zero_()
                start = 0
                for latent, size in encoder.latents.items():
                    raw = self.wide(built) if latent == "shared" else torch.zeros(size)
                    encoder.head.bias[start : start + 2 * size] = torch.cat([raw * 0, raw])
                    start += 2 * size

    def wide(self, built: Built) -> Tensor:
        """Raw scale of an expert that says almost nothing: a variance of 100."""
        return torch.full((self.case.latent_dim,), math.log(100.0))

    def draws_at_once(self) -> bool:
        """Whether rows of a tiled batch draw independently of each other."""
        return True

    def losses(self, output: mv.LossOutput, batch: mv.Batch, draws: int) -> Tensor:
        """The golden's loss for each of the draws that a tiled batch holds, ``(draws,)``."""
        return self.case.reduction_factor * self.objective(output, batch, draws)

    def objective(self, output: mv.LossOutput, batch: mv.Batch, draws: int) -> Tensor:
        """Our objective for each draw, ``(draws,)``."""
        seen = batch.something.double()
        total = seen.new_zeros(draws)
        for term in output.terms.values():
            weight = (seen if term.weight is None else term.weight).view(draws, -1)
            total = total + (weight * term.value.view(draws, -1)).sum(1) / weight.sum(1)
        return total

    def posterior(self, built: Built, batch: mv.Batch) -> Normal:
        """The Gaussian of the shared latent given what is seen."""
        posterior: Any = built.model.posterior(built.model.prepare(batch))
        part = posterior.parts["shared"]
        if isinstance(part, Mixture) and part.components.mean.shape[0] == 1:
            part = part.components[0]
        if not isinstance(part, Normal):
            raise CaseError(f"{self.case.name}: the posterior is no Gaussian, but {type(part)}")
        return part

    def conditional(self, entry: Entry) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Given and targets of a conditional likelihood."""
        raise CaseError(f"{self.case.name}: {self.case.model} has no conditional likelihoods")

    def component(self, entry: Entry, noise: NoiseSource, draws: int) -> Tensor | None:
        """One of the peer's components for each draw, ``(draws,)`` or ``(1,)``; None: unknown."""
        return None

    def array(self, entry: Entry) -> Tensor:
        """The numbers of a quantity that one model alone has."""
        raise CaseError(f"{self.case.name}: no number of ours is called {entry.quantity!r}")

    def output(self, built: Built, batch: mv.Batch, noise: NoiseSource) -> mv.LossOutput:
        """Our training loss of a batch."""
        model = built.model
        return model.loss(model.prepare(batch), mv.Step(training=True, noise=noise))

    def _common(self, config: Options) -> dict[str, float]:
        """Take the options that every model of the peer has; return the likelihood weights."""
        case, given = self.case, self.case.modalities()
        sizes = {name: torch.Size(each["shape"]).numel() for name, each in given.items()}
        config.same("n_modalities", len(case.order))
        config.same("latent_dim", case.latent_dim)
        dims = config.take("input_dims", {}, mapping)
        if dims and {name: list(dim) for name, dim in dims.items()} != {
            name: each["shape"] for name, each in given.items()
        }:
            raise CaseError(f"{case.name}: input_dims contradicts the case")
        likelihoods = {name: each["likelihood"]["type"] for name, each in given.items()}
        stated = config.take("decoders_dist", likelihoods, mapping)
        if stated != likelihoods:
            raise CaseError(f"{case.name}: decoders_dist contradicts the case")
        scales = {
            name: {"scale": each["likelihood"]["scale"]}
            for name, each in given.items()
            if "scale" in each["likelihood"]
        }
        stated = config.take("decoder_dist_params", {}, mapping)
        if any(options and options != scales.get(name) for name, options in stated.items()):
            raise CaseError(f"{case.name}: decoder_dist_params contradicts the case")
        config.take("custom_architectures", [], lambda v: isinstance(v, list))

        rescaled = config.take("uses_likelihood_rescaling", self.rescales, flag)
        factors = config.take(
            "rescale_factors",
            {name: max(sizes.values()) / size for name, size in sizes.items()},
            lambda v: mapping(v) and set(v) == set(sizes) and all(map(number, v.values())),
        )
        return dict(factors) if rescaled else dict.fromkeys(sizes, 1.0)


def installed_as(model: str) -> str | None:
    """Our name of a peer's model; None where it is not installed."""
    for name in mv.registry.models.names():
        if plain(name) == plain(model):
            return name
    return None


def plain(name: str) -> str:
    """A model's name without what differs between spellings."""
    return "".join(c for c in name.lower().replace("+", "plus") if c.isalnum())

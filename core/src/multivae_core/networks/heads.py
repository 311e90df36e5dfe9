"""What turns a trunk into an encoder of latents or a decoder of one modality."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from multivae_core.errors import ConfigError
from multivae_core.likelihoods import Likelihood

__all__ = [
    "ModalityDecoder", "ModalityEncoder", "PerModality", "PlainTrunk", "check_decoder",
]  # fmt: skip

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class PerModality(nn.Module, Generic[ModuleT]):
    """Modules by modality name; parameters are named by position, never by a user's text."""

    def __init__(self, modules: Mapping[str, ModuleT]) -> None:
        super().__init__()
        self._positions = {name: place for place, name in enumerate(modules)}
        self.each = nn.ModuleList(modules.values())

    def __getitem__(self, name: str) -> ModuleT:
        return self.each[self._positions[name]]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)


class PlainTrunk(nn.Module):
    """A user's own network as the trunk of an encoder: values in, features out.

    Args:
        network: Maps ``(R, *shape)`` to ``(R, F)``.
        name: The modality, for the message.
        shape: Shape of one measurement.

    Raises:
        ConfigError: The network does not map two measurements of zeros to two rows of features.
    """

    def __init__(self, network: nn.Module, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        rule = f"it must map (rows, {_listed(shape)}) to (rows, features)"
        features = _probe(network, shape, f"encoder of {name!r} fails on a batch", rule)
        if features.ndim != 2 or len(features) != 2:
            raise ConfigError(
                f"the network given as encoder of {name!r} does not fit: {rule}; for 2 rows it"
                f" gave {tuple(features.shape)}: flatten its output"
            )
        self.out_features = features.shape[1]

    def forward(self, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return features ``(R, F)``; the network does not see which elements were observed."""
        features: Tensor = self.network(values)
        return features


def check_decoder(
    network: nn.Module, name: str, latent: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """Try a user's own network as the decoder of a modality.

    Args:
        network: Maps ``(R, *latent)`` to ``(R, *shape)``.
        name: The modality, for the message.
        latent: Shape of what the decoder reads.
        shape: Shape of what the likelihood needs.

    Raises:
        ConfigError: It does not map two latents of zeros to two rows of that many numbers.
    """
    rule = f"it must map (rows, {_listed(latent)}) to (rows, {_listed(shape)})"
    raw = _probe(network, latent, f"decoder of {name!r} fails on latents", rule)
    if len(raw) != 2 or raw.numel() != 2 * math.prod(shape):
        raise ConfigError(
            f"the network given as decoder of {name!r} gave {tuple(raw.shape)} for 2 rows of"
            f" latents; {rule}"
        )


def _probe(network: nn.Module, shape: tuple[int, ...], what: str, rule: str) -> Tensor:
    """Run a network on two rows of zeros; it stays as it was, running statistics included."""
    first = next(network.parameters(), torch.zeros(()))
    zeros = torch.zeros(2, *shape, dtype=first.dtype, device=first.device)
    training = [module for module in network.modules() if module.training]
    try:
        with torch.no_grad():
            found = network.eval()(zeros)
        if not isinstance(found, Tensor) or not found.ndim:
            raise TypeError(f"it gave a {type(found).__name__}, not a tensor with rows")
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the network given as {what} of shape {tuple(zeros.shape)} ({error}); {rule}"
        ) from error
    finally:
        for module in training:
            module.training = True
    return found


def _listed(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


class ModalityEncoder(nn.Module):
    """A trunk and one linear head for the parameters of all its latents.

    Args:
        trunk: ``(R, *shape)`` and element mask -> ``(R, F)``, with ``out_features``.
        latents: Name of a latent -> its size D.
        counts: Whether the trunk sees log(1 + x) of the values: counts range over orders of
            magnitude, and there is no scale that they could be brought to.
        scale: Whether there is a raw scale; an encoder that gives points has the location alone.
    """

    def __init__(
        self,
        trunk: nn.Module,
        latents: Mapping[Any, int],
        counts: bool = False,
        scale: bool = True,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.counts = counts
        self.latents = dict(latents)
        features: int = trunk.out_features  # type: ignore[assignment]
        self.parts = 2 if scale else 1
        self.head = nn.Linear(features, self.parts * sum(self.latents.values()))

    def forward(self, values: Tensor, observed: Tensor | None = None) -> dict[Any, Tensor]:
        """Return for every latent location and raw scale, ``(R, 2, D)``; or ``(R, 1, D)``."""
        raw = self.head(self.trunk(values.log1p() if self.counts else values, observed))
        parts = raw.split([self.parts * size for size in self.latents.values()], dim=1)
        return {
            name: part.view(-1, self.parts, size)
            for (name, size), part in zip(self.latents.items(), parts, strict=True)
        }


class ModalityDecoder(nn.Module):
    """A network and the likelihood whose parameters it gives.

    Args:
        network: ``(R, *event)`` -> ``(R, P * shape[0], *shape[1:])``, P parameters per element.
        likelihood: Head of the likelihood, a module with ``n_params``.
        shape: Shape of one measurement.
    """

    def __init__(self, network: nn.Module, likelihood: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.likelihood = likelihood
        self.shape = shape
        self.n_params: int = likelihood.n_params  # type: ignore[assignment]

    def forward(self, latent: Tensor) -> Likelihood:
        """Return the likelihood of one measurement for every latent, ``(n, R, *event)``."""
        n, rows = latent.shape[:2]
        raw = self.network(latent.reshape(n * rows, *latent.shape[2:]))
        if raw.numel() != n * rows * self.n_params * math.prod(self.shape):
            raise ConfigError(
                f"a decoder gave {tuple(raw.shape[1:])} values per row where the likelihood needs"
                f" {self.n_params} per element of {self.shape}; make the network return"
                f" {(self.n_params * self.shape[0], *self.shape[1:])}"
            )
        result: Likelihood = self.likelihood(raw.view(n, rows, self.n_params, *self.shape))
        return result

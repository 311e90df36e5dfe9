"""What turns a trunk into an encoder of latents or a decoder of one modality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from multivae_core.errors import ConfigError
from multivae_core.likelihoods import Likelihood

__all__ = [
    "ModalityDecoder",
    "ModalityEncoder",
    "PerModality",
    "PlainTrunk",
    "check_decoder",
]

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
        first = next(network.parameters(), torch.zeros(()))
        probe = torch.zeros(2, *shape, dtype=first.dtype, device=first.device)
        try:
            with torch.no_grad():
                features = network(probe)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the network given as encoder of {name!r} fails on a batch of shape"
                f" {tuple(probe.shape)} ({error}); it must map (rows, {_listed(shape)}) to"
                " (rows, features)"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise ConfigError(
                f"the network given as encoder of {name!r} must map (rows, {_listed(shape)}) to"
                f" (rows, features); for 2 rows it gave {got}: flatten its output"
            )
        self.out_features = features.shape[1]

    def forward(self, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return features ``(R, F)``; the network does not see which elements were observed."""
        features: Tensor = self.network(values)
        return features


def check_decoder(network: nn.Module, name: str, size: int, shape: tuple[int, ...]) -> None:
    """Try a user's own network as the decoder of a modality.

    Args:
        network: Maps ``(R, size)`` to ``(R, *shape)``.
        name: The modality, for the message.
        size: Size of the latents together.
        shape: Shape of what the likelihood needs.

    Raises:
        ConfigError: It does not map two latents of zeros to two rows of that many numbers.
    """
    first = next(network.parameters(), torch.zeros(()))
    probe = torch.zeros(2, size, dtype=first.dtype, device=first.device)
    rule = f"it must map (rows, {size}) to (rows, {_listed(shape)})"
    try:
        with torch.no_grad():
            raw = network(probe)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the network given as decoder of {name!r} fails on latents of shape"
            f" {tuple(probe.shape)} ({error}); {rule}"
        ) from error
    if not isinstance(raw, Tensor) or len(raw) != 2 or raw.numel() != 2 * _numel(shape):
        got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw)
        raise ConfigError(
            f"the network given as decoder of {name!r} gave {got} for 2 rows of latents; {rule}"
        )


def _listed(shape: tuple[int, ...]) -> str:
    return ", ".join(str(length) for length in shape)


class ModalityEncoder(nn.Module):
    """A trunk and one linear head for the parameters of all its latents.

    Args:
        trunk: ``(R, *shape)`` and element mask -> ``(R, F)``, with ``out_features``.
        latents: Name of a latent -> its size D.
    """

    def __init__(self, trunk: nn.Module, latents: Mapping[Any, int]) -> None:
        super().__init__()
        self.trunk = trunk
        self.latents = dict(latents)
        features: int = trunk.out_features  # type: ignore[assignment]
        self.head = nn.Linear(features, 2 * sum(self.latents.values()))

    def forward(self, values: Tensor, observed: Tensor | None = None) -> dict[Any, Tensor]:
        """Return for every latent the location and the raw scale, ``(R, 2, D)``."""
        raw = self.head(self.trunk(values, observed))
        parts = raw.split([2 * size for size in self.latents.values()], dim=1)
        return {
            name: part.view(-1, 2, size)
            for (name, size), part in zip(self.latents.items(), parts, strict=True)
        }


class ModalityDecoder(nn.Module):
    """A network and the likelihood whose parameters it gives.

    Args:
        network: ``(R, D)`` -> ``(R, P * shape[0], *shape[1:])`` with P parameters per element.
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
        """Return the likelihood of one measurement for every latent, ``(n, R, D)``."""
        n, rows = latent.shape[:2]
        raw = self.network(latent.reshape(n * rows, latent.shape[2]))
        if raw.numel() != n * rows * self.n_params * _numel(self.shape):
            raise ConfigError(
                f"a decoder gave {tuple(raw.shape[1:])} values per row where the likelihood needs"
                f" {self.n_params} per element of {self.shape}; make the network return"
                f" {(self.n_params * self.shape[0], *self.shape[1:])}"
            )
        result: Likelihood = self.likelihood(raw.view(n, rows, self.n_params, *self.shape))
        return result


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()

"""Encoders that take whatever a row has of several modalities.

Modality m has features ``h_m = f_m(x_m)`` where it is there and a learned vector ``e_m`` where it
is not, and the trunk reads ``[a_1 h_1 + (1 - a_1) e_1, ..., a_1, ..., a_M]``. Nothing that lies
under a hole is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multivae_core.config import build
from multivae_core.data import Batch
from multivae_core.errors import ConfigError
from multivae_core.model_config import ModalityConfig
from multivae_core.networks.heads import PerModality

__all__ = [
    "Features", "GaussianEncoder", "MaskedFeatures", "OwnFeatures", "Stacked", "build_trunk",
]  # fmt: skip


class Features(nn.Module):
    """Features of one modality.

    Args:
        trunk: From values and element mask to ``(R, F)``, with ``out_features``.
        counts: Whether it is to see log(1 + x).
    """

    def __init__(self, trunk: nn.Module, counts: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.counts = counts
        self.out_features: int = trunk.out_features  # type: ignore[assignment]

    def forward(self, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """Compute features ``(R, F)``."""
        features: Tensor = self.trunk(values.log1p() if self.counts else values, observed)
        return features


class MaskedFeatures(nn.Module):
    """Features of several modalities side by side, whatever is missing.

    Args:
        trunks: Modality -> its `Features`.
        bits: Whether the features say which modalities are there.
    """

    supports_mask = True

    def __init__(self, trunks: Mapping[str, Features], bits: bool) -> None:
        super().__init__()
        self.trunks = PerModality(trunks)
        self.bits = bits
        sizes = [trunk.out_features for trunk in trunks.values()]
        self.absent = nn.ParameterList(torch.zeros(size) for size in sizes)
        self.out_features = sum(sizes) + bits * len(sizes)

    def forward(self, batch: Batch) -> Tensor:
        """Compute features ``(B, F)``."""
        parts = [
            self._one(name, batch, e) for name, e in zip(self.trunks, self.absent, strict=True)
        ]
        if self.bits:
            columns = torch.stack([batch.column(name) for name in self.trunks], dim=1)
            parts.append(columns.to(parts[0].dtype))
        return torch.cat(parts, dim=1)

    def _one(self, name: str, batch: Batch, absent: Tensor) -> Tensor:
        rows, values, observed = batch.rows(name), batch.values[name], batch.observed.get(name)
        if rows is not None:
            values = values.index_select(0, rows)
            observed = None if observed is None else observed.index_select(0, rows)
        features: Tensor = self.trunks[name](values, observed)
        if rows is None:
            return features
        return absent.expand(batch.size, -1).index_copy(0, rows, features)


class OwnFeatures(nn.Module):
    """A user's own network that sees several modalities.

    Args:
        network: ``{modality: (R, *shape)}`` -> ``(R, F)``. With an attribute
            ``supports_mask = True`` it is called with a second argument, the ``(R, M)`` mask of
            what is present, and has to give features of incomplete rows, whose holes are zeros.
        modalities: Modality -> its configuration.
        names: The modalities that it sees.
        role: What the network is for, for the message.

    Raises:
        ConfigError: It does not map two rows of zeros to two rows of features.
    """

    def __init__(
        self,
        network: nn.Module,
        modalities: Mapping[str, ModalityConfig],
        names: Sequence[str],
        role: str,
    ) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)
        self.supports_mask = bool(getattr(network, "supports_mask", False))
        like = next(network.parameters(), torch.zeros(()))
        values = {name: like.new_zeros(2, *modalities[name].shape) for name in names}
        present = torch.ones(2, len(self.names), dtype=torch.bool, device=like.device)
        rule = "it must map {modality: (rows, *shape)} to (rows, features)"
        try:
            with torch.no_grad():
                found = self(Batch(values=values, present=present))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the network fails ({error}); {rule}", f"networks.{role}"
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(f"for 2 rows it gave {what}; {rule}", f"networks.{role}")
        self.out_features = found.shape[1]

    def forward(self, batch: Batch) -> Tensor:
        """Compute features ``(B, F)``."""
        values = {name: batch.values[name] for name in self.names}
        present = torch.stack([batch.column(name) for name in self.names], dim=1)
        masked = self.supports_mask
        features: Tensor = self.network(values, present) if masked else self.network(values)
        return features


class Stacked(nn.Module):
    """Features of several extractors side by side.

    Args:
        parts: Modules from a batch to features, with ``out_features``.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.out_features: int = sum(part.out_features for part in parts)  # type: ignore[misc]

    def forward(self, batch: Batch) -> Tensor:
        """Compute features ``(B, F)``."""
        return torch.cat([part(batch) for part in self.parts], dim=1)


def build_trunk(configuration: Any, size: int, option: str) -> nn.Module:
    """Build a registered encoder over features of a size; errors name the option."""
    try:
        trunk: nn.Module = build("encoders", configuration, (size,), False)
    except ConfigError as error:
        raise error.under(option) from error
    return trunk


class GaussianEncoder(nn.Module):
    """A diagonal Gaussian out of features of a batch.

    Args:
        features: From a batch to ``(B, F)``, with ``out_features``.
        trunk: From ``(B, F)`` to ``(B, H)``, with ``out_features``; None: there is none.
        latent_dim: Size D of the latent.
        limit: Log-variances are kept between minus this and this; None: they are left alone.
    """

    def __init__(
        self,
        features: nn.Module,
        trunk: nn.Module | None,
        latent_dim: int,
        limit: float | None = None,
    ) -> None:
        super().__init__()
        self.limit = limit
        self.features = features
        self.trunk = trunk
        last = features if trunk is None else trunk
        size: int = last.out_features  # type: ignore[assignment]
        self.head = nn.Linear(size, 2 * latent_dim)

    @property
    def supports_mask(self) -> bool:
        """Whether it takes rows with holes."""
        return bool(self.features.supports_mask)

    def forward(self, batch: Batch) -> Tensor:
        """Return mean and log-variance, ``(B, 2, D)``."""
        hidden = self.features(batch)
        if self.trunk is not None:
            hidden = self.trunk(hidden)
        raw: Tensor = self.head(hidden)
        parts = raw.view(len(raw), 2, raw.shape[1] // 2)
        if self.limit is None:
            return parts
        mean, log_variance = parts.unbind(dim=1)
        return torch.stack([mean, log_variance.clamp(-self.limit, self.limit)], dim=1)

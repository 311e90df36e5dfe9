"""One batch of rows: what was measured, and what of it may be seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import torch
from torch import Tensor

from multivae_core.errors import DataError

__all__ = ["Batch"]


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """Rows of several modalities with holes; conditioning and missing data are the same mask.

    Values under a hole are never read by a model: ``present`` and ``observed`` alone decide.

    Args:
        values: Modality name -> ``(B, *shape)``.
        present: ``(B, M)`` bool, columns in the order of ``values``; True where something of the
            modality may be seen.
        observed: Modality name -> ``(B, *shape)`` bool, only for modalities with holes inside
            a measurement; every other modality is whole wherever it is present.
        labels: ``(B, ...)`` or None.
        index: ``(B,)`` row numbers in the data set; in evaluation a row's random numbers depend
            on its index and on no other row.
    """

    values: dict[str, Tensor]
    present: Tensor
    observed: dict[str, Tensor] = attrs.field(factory=dict)
    labels: Tensor | None = None
    index: Tensor = attrs.field()
    _rows: dict[str, Tensor | None] = attrs.field(factory=dict, init=False, repr=False)

    @index.default
    def _count(self) -> Tensor:
        return torch.arange(self.present.shape[0], device=self.present.device)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in the order of the columns of ``present``."""
        return tuple(self.values)

    @property
    def size(self) -> int:
        """The number of rows B."""
        return int(self.present.shape[0])

    @property
    def something(self) -> Tensor:
        """``(B,)`` bool: True for rows of which anything may be seen."""
        return self.present.any(dim=1)

    @property
    def patterns(self) -> Tensor:
        """`present`, ``(B, M)``; or its first row, ``(1, M)``, where every row has everything."""
        whole = self.size > 0 and all(self.rows(name) is None for name in self.names)
        return self.present[:1] if whole else self.present

    def column(self, name: str) -> Tensor:
        """``(B,)`` bool: True where the modality may be seen."""
        return self.present[:, self.names.index(name)]

    def rows(self, name: str) -> Tensor | None:
        """Numbers of the rows that have the modality, ``(R,)``; None when every row has it."""
        if not self._rows:
            whole = self.present.all(dim=0).tolist()
            for place, known in enumerate(self.names):
                column = self.present[:, place]
                self._rows[known] = None if whole[place] else column.nonzero().squeeze(1)
        return self._rows[name]

    def restrict(self, visible: Iterable[str] | Tensor) -> Batch:
        """Return the batch as if only these had been seen; rows, order and count are kept.

        Args:
            visible: Names of modalities, or a ``(B, M)`` bool mask. What is already missing
                stays missing.

        Raises:
            DataError: An unknown modality, or a mask of another shape or type.
        """
        if isinstance(visible, Tensor):
            if visible.dtype != torch.bool or visible.shape != self.present.shape:
                raise DataError(
                    f"restrict: a mask must be bool of shape {tuple(self.present.shape)} (rows,"
                    f" modalities), got {visible.dtype} of shape {tuple(visible.shape)};"
                    " pass such a mask, or a set of modality names"
                )
            mask = self.present & visible.to(self.present.device)
        else:
            chosen = {visible} if isinstance(visible, str) else set(visible)
            unknown = sorted(chosen - set(self.names))
            if unknown:
                raise DataError(
                    f"restrict: unknown modality {unknown[0]!r}; this data has"
                    f" {', '.join(self.names)}: use names out of these"
                )
            keep = torch.tensor([n in chosen for n in self.names], device=self.present.device)
            mask = self.present & keep
        return attrs.evolve(self, present=mask)

    def with_values(self, values: dict[str, Tensor], observed: dict[str, Tensor]) -> Batch:
        """Return the batch with other values, in their order of modalities.

        Args:
            values: Modality -> ``(B, *shape)``; one that was not there is missing in every row.
            observed: Modality -> ``(B, *shape)`` bool.
        """
        if tuple(values) == self.names:
            same = attrs.evolve(self, values=values, observed=observed)
            same._rows.update(self._rows)
            return same
        nowhere = self.present.new_zeros(self.size)
        columns = [self.column(name) if name in self.values else nowhere for name in values]
        present = torch.stack(columns, dim=1)
        return attrs.evolve(self, values=values, observed=observed, present=present)

    def take(self, rows: Tensor) -> Batch:
        """Return the rows with these numbers ``(R,)``, in that order."""
        return attrs.evolve(
            self,
            values=_taken(self.values, rows),
            present=self.present.index_select(0, rows),
            observed=_taken(self.observed, rows),
            labels=None if self.labels is None else self.labels.index_select(0, rows),
            index=self.index.index_select(0, rows),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        if self.present.device == torch.device(device):
            return self
        return attrs.evolve(
            self,
            values={name: x.to(device) for name, x in self.values.items()},
            present=self.present.to(device),
            observed={name: x.to(device) for name, x in self.observed.items()},
            labels=None if self.labels is None else self.labels.to(device),
            index=self.index.to(device),
        )


def _taken(tensors: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: x.index_select(0, rows) for name, x in tensors.items()}

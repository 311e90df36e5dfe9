"""One batch of rows: what was measured, and what of it may be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import torch
from torch import Tensor

from multivae_core.data.checks import still_visible

__all__ = ["Batch"]


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """Rows of several modalities with holes; conditioning and missing data are the same mask.

    Values under a hole are never read by a model: `seen` alone decides, which is ``present`` and
    ``observed`` together. Restricting turns ``present`` off and leaves ``observed`` as it was.

    Args:
        values: Modality name -> ``(B, *shape)``.
        present: ``(B, M)`` bool, columns in the order of ``values``; True where something of the
            modality may be seen.
        observed: Modality name -> ``(B, *shape)`` bool, only for modalities with holes inside
            a measurement, and to be read only in rows that are present; every other modality is
            whole wherever it is present.
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

    def seen(self, name: str) -> Tensor:
        """``(B, *shape)`` bool: the elements of the modality that may be seen."""
        values = self.values[name]
        column = self.column(name).view(-1, *[1] * (values.ndim - 1)).expand_as(values)
        return column & self.observed[name] if name in self.observed else column

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
            visible: Names of modalities, or a ``(B, M)`` bool mask.

        Raises:
            DataError: An unknown modality, or a mask of another shape or type.
        """
        return attrs.evolve(self, present=still_visible(visible, self.names, self.present))

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
        return self._each(lambda x: x.index_select(0, rows))

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        if self.present.device == torch.device(device):
            return self
        return self._each(lambda x: x.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            values={name: change(x) for name, x in self.values.items()},
            present=change(self.present),
            observed={name: change(x) for name, x in self.observed.items()},
            labels=None if self.labels is None else change(self.labels),
            index=change(self.index),
        )

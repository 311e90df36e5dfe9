"""The data set: named modalities, labels, and what of every row is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multivae_core.data import checks, holes, iterate, readers
from multivae_core.data.batch import Batch
from multivae_core.data.storage import Ids, Table
from multivae_core.data.summary import Summary, one_line, summarise
from multivae_core.errors import DataError

__all__ = ["IncompleteDataset"]


class IncompleteDataset:
    """N rows of M named modalities, any of which may be missing, wholly or in parts.

    A data set never changes: every method that selects or hides returns another one, which
    shares the values. Arrays are not copied and never written to, so do not change them
    afterwards; what lies under a hole is replaced by zeros when rows are read. Types are kept
    (integers, bool and floats are legal; unsigned 16 to 64 bits become the next signed type,
    which reads such a memory-mapped file into memory).

    Without a mask NaN is the mask, element by element, and the number of NaN is logged. Where
    ``present`` or ``observed`` says True, NaN and inf are errors; given both masks, an entry is
    seen if both say so.

    Args:
        values: Modality name -> ``(N, *shape)`` tensor, array or array-like, in memory or
            memory-mapped. Names consist of letters, digits, ``_`` and ``-``.
        present: Modality name -> ``(N,)`` bool for every modality, or ``(N, M)`` bool with
            columns in the order of ``values``; True where seen.
        observed: Modality name -> ``(N, *shape)`` bool, for any of the modalities.
        labels: ``(N,)`` or ``(N, k)`` numbers; integers become int64.
        allow_empty_rows: Accept rows with nothing observed. They weigh 0 in every loss.

    Raises:
        DataError: The data break a rule; the message names modality, row, rule and remedy.

    Example:
        >>> import numpy as np
        >>> image, text = np.ones((4, 8, 8)), np.ones((4, 5))
        >>> text[1] = np.nan
        >>> data = IncompleteDataset({"image": image, "text": text})
        >>> data
        IncompleteDataset(4 rows; image (8, 8) float64, text (5,) float64; 12.5% missing)
        >>> data.batch([1, 2]).present.tolist()
        [[True, False], [True, True]]
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        present: Any = None,
        observed: Mapping[str, Any] | None = None,
        labels: Any = None,
        allow_empty_rows: bool = False,
    ) -> None:
        names = checks.check_names("values", values)
        tensors = {name: checks.to_values(name, values[name]) for name in names}
        rows = checks.common_length(tensors)
        if present is not None and not isinstance(present, Mapping):
            mask = checks.to_mask("present", present, (rows, len(names)))
            present = dict(zip(names, mask.unbind(dim=1), strict=True))
        columns = checks.to_masks("present", present, dict.fromkeys(names, (rows,)), every=True)
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        elements = checks.to_masks("observed", observed, shapes)
        self._table = Table.of(tensors, columns, elements, labels, {})
        if not allow_empty_rows:
            self._table.refuse_empty_rows()

    @classmethod
    def _of(cls, table: Table, allow_empty_rows: bool = True) -> IncompleteDataset:
        if not allow_empty_rows:
            table.refuse_empty_rows()
        data = cls.__new__(cls)
        data._table = table
        return data

    @classmethod
    def from_dataframes(
        cls,
        tables: Mapping[str, Any],
        *,
        id_column: str | None = None,
        labels: Any = None,
        allow_empty_rows: bool = False,
    ) -> IncompleteDataset:
        """Align pandas tables by the identifiers of their rows, which `ids` keeps.

        A row that a table does not have is a missing modality; NaN is a missing element. Rows
        come in the order in which their identifiers first appear.

        Args:
            tables: Modality name -> DataFrame of numeric columns.
            id_column: Column with the identifiers, in every table; None takes the index.
            labels: Series or mapping identifier -> number; identifiers that are in no table
                are left out.
            allow_empty_rows: Accept rows with nothing observed.

        Raises:
            DataError: Duplicate or missing identifiers, columns that are not numbers, an
                identifier without a label.
        """
        return cls._of(readers.from_dataframes(tables, id_column, labels), allow_empty_rows)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        modalities: Iterable[str] | None = None,
        id_column: str | None = None,
        allow_empty_rows: bool = False,
    ) -> IncompleteDataset:
        """Read one file per modality; ``.npy`` and ``.safetensors`` stay memory-mapped.

        ============================ =====================================================
        ``image.npy``                values ``(N, *shape)``
        ``image.present.npy``        optional, ``(N,)`` bool
        ``image.observed.npy``       optional, ``(N, *shape)`` bool
        ``image.ids.txt``            optional, one identifier per line
        ``image.safetensors``        tensor ``values``, optional ``present``, ``observed``
        ``image.csv``                a header, then numbers; an empty cell is missing
        ``labels.csv`` (or ``.npy``) labels, one column
        ============================ =====================================================

        With identifiers in all files, rows are aligned by them as in `from_dataframes`;
        without, row i is the same subject in every file. Other files are ignored. Files are
        read through once, to find NaN.

        Args:
            path: The folder.
            modalities: Which to read; None reads all.
            id_column: Column of the CSV files that holds the identifiers.
            allow_empty_rows: Accept rows with nothing observed.

        Raises:
            DataError: Contents that break a rule.
            FileFormatError: A missing, damaged or pickled file.
        """
        return cls._of(readers.from_folder(Path(path), modalities, id_column), allow_empty_rows)

    def __len__(self) -> int:
        """The number of rows N."""
        return self._table.size

    def __repr__(self) -> str:
        """Describe the data in one line."""
        return one_line(self._table)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in the order of the columns of ``present``."""
        return self._table.names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modality name -> shape of one row's value."""
        return {name: column.shape for name, column in self._table.columns.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Modality name -> type of its values."""
        return {name: column.tensor.dtype for name, column in self._table.columns.items()}

    @property
    def present(self) -> Tensor:
        """``(N, M)`` bool, True where something of the modality is seen; not to be changed."""
        return self._table.present

    @property
    def observed(self) -> dict[str, Tensor]:
        """Name -> ``(N, *shape)`` bool, only for modalities that some row has in part."""
        return dict(self._table.observed)

    @property
    def labels(self) -> Tensor | None:
        """``(N, ...)`` or None."""
        return self._table.labels

    @property
    def ids(self) -> Ids | None:
        """``(N,)`` the identifiers by which rows were aligned, numbers or text, or None."""
        return self._table.ids

    def missing_rates(self) -> dict[str, float]:
        """Return the share of rows that lack each modality; 1.0 means missing everywhere."""
        rates = (~self.present).double().mean(dim=0).tolist()
        return dict(zip(self.names, rates, strict=True))

    def moments(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (divisor n) of every feature over its observed entries.

        Both float64 and of the modality's shape, 0 where nothing is observed.
        """
        checks.known_names("moments", [name], self.names)
        return self._table.moments(name)

    def summary(self) -> Summary:
        """Return a table of shapes, types, missing shares and patterns; print it."""
        return summarise(self._table)

    def batch(self, index: Any = None) -> Batch:
        """Read rows whole, with zeros under every hole.

        Args:
            index: Row numbers ``(B,)``, a bool mask ``(N,)``, a slice, or None for all rows.

        Returns:
            Copies of the rows; ``batch.index`` holds their numbers in this data set.
        """
        return self._table.read(iterate.to_rows(index, len(self)))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        workers: int = 0,
    ) -> Iterator[Batch]:
        """Iterate over one epoch, in an order that depends on (N, seed, epoch) alone.

        The last batch may be smaller; ``workers`` are processes that read ahead (0 reads here).
        """
        plan = iterate.row_batches(len(self), batch_size, shuffle=shuffle, seed=seed, epoch=epoch)
        return self.fetch(plan, workers)

    def fetch(self, plan: Iterable[Tensor], workers: int = 0) -> Iterator[Batch]:
        """Read the batches of a plan: row numbers of each, ``(B,)`` int64, not checked."""
        return iterate.fetch(self._table.read, plan, workers)

    def restrict(self, visible: Iterable[str] | Any) -> IncompleteDataset:
        """Return the data as if only these had been seen; rows, order and count are kept.

        Args:
            visible: Names of modalities, or an ``(N, M)`` bool mask. Rows may become empty.
        """
        present = checks.still_visible(visible, self.names, self.present)
        return self._of(self._table.show(present, self._table.observed))

    def hide(
        self,
        rate: float | Mapping[str, float],
        *,
        seed: int,
        mechanism: str = "mcar",
        level: str = "modality",
        depends_on: str | None = None,
        strength: float = 1.0,
        keep_one: bool = False,
    ) -> IncompleteDataset:
        """Return the data with holes made for an experiment.

        Each visible entry is hidden by an independent coin, with an expected share of exactly
        ``rate``. The coins of a modality depend on the seed and its name, so that a higher
        rate hides more of the same, and other modalities change nothing.

        Args:
            rate: Share of the visible entries to hide, for all modalities or by name.
            seed: Seed of the coins.
            mechanism: ``"mcar"``, completely at random; ``"mar"``, depending on what stays
                visible; ``"mnar"``, depending on the values that are hidden (a row's mean
                standardised value, or each standardised element).
            level: ``"modality"`` hides all of a modality in a row, ``"element"`` single
                elements (of one-hot data too, where a category with a hidden one is unseen).
            depends_on: For MAR: ``"labels"`` (the default) or a modality without holes, which
                is then not hidden itself.
            strength: For MAR and MNAR: change of the log-odds of being hidden per standard
                deviation of what it depends on; negative values hide the low ones.
            keep_one: At modality level, give a row that would lose everything one modality
                back, at random; the realised rates are lower by that much.

        Raises:
            DataError: An unknown option, or one that the data do not allow.
        """
        options = mechanism, level, depends_on, strength, keep_one
        return self._of(holes.hide(self._table, rate, seed, *options))

    def subset(self, index: Any) -> IncompleteDataset:
        """Return the data set of these rows, numbered 0, 1, ... anew; values are shared.

        Args:
            index: Row numbers, repeated ones included, a bool mask ``(N,)`` or a slice.
        """
        rows = iterate.to_rows(index, len(self))
        if len(rows) == 0:
            raise DataError("subset: no rows were selected; a data set needs at least one")
        return self._of(self._table.take(rows))

    def split(self, *parts: float, seed: int = 0) -> tuple[IncompleteDataset, ...]:
        """Deal the rows to several data sets at random, each in the order of the rows.

        Args:
            *parts: Shares (floats) or counts (integers); what they leave over is the last part.
            seed: Seed of the choice.
        """
        rows = iterate.split_rows(len(self), parts, seed)
        return tuple(self._of(self._table.take(part)) for part in rows)

    def concat(self, *others: IncompleteDataset) -> IncompleteDataset:
        """Return the rows of this and other data sets, one after the other.

        Values are copied, unless all are parts of one data set.

        Raises:
            DataError: Other modalities, shapes or types, or labels or ids in some only.
        """
        for number, other in enumerate(others, start=1):
            if not isinstance(other, IncompleteDataset):
                kind = type(other).__name__
                raise DataError(f"concat: item {number} is a {kind}; pass data sets")
        return self._of(Table.join([self._table, *(other._table for other in others)]))

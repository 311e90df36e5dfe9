"""Readers: pandas tables, and folders of CSV, .npy and safetensors files. No pickle anywhere."""

from __future__ import annotations

import csv
import importlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from multivae_core.data import checks
from multivae_core.data.storage import Ids, Table
from multivae_core.errors import DataError, FileFormatError

__all__ = ["from_dataframes", "from_folder"]

logger = logging.getLogger(__name__)

_SUFFIXES = (".csv", ".npy", ".safetensors")
_MISSING = {"", "na", "nan", "null", "none"}
_LABELS = "labels"

Numbers = np.ndarray[Any, Any]


@attrs.frozen(kw_only=True, eq=False)
class Source:
    """A modality ``(R, *shape)``, or the labels, with identifiers and masks if files have them."""

    name: str
    values: Any
    ids: Sequence[Any] | None
    present: Tensor | None = None
    observed: Tensor | None = None


def from_dataframes(tables: Mapping[str, Any], id_column: str | None, labels: Any) -> Table:
    """Align tables by identifier; see `IncompleteDataset.from_dataframes`."""
    try:
        pandas: Any = importlib.import_module("pandas")
    except ImportError as err:
        raise DataError(
            "from_dataframes needs pandas, which is not installed"
            ": pip install 'multivae-core[dataframes]'"
        ) from err
    names = checks.check_names("tables", tables)
    sources = [_frame(pandas, name, tables[name], id_column) for name in names]
    if labels is None:
        return align(sources, None)
    if isinstance(labels, Mapping):
        labels = pandas.Series(dict(labels))
    if not isinstance(labels, pandas.Series):
        raise DataError(
            f"labels is a {type(labels).__name__}; rows are aligned by identifier: pass a Series"
            " indexed by it, or a mapping identifier -> number"
        )
    codes = Source(name=_LABELS, values=labels.to_numpy(), ids=labels.index.tolist())
    return align(sources, codes)


def _frame(pandas: Any, name: str, table: Any, id_column: str | None) -> Source:
    if not isinstance(table, pandas.DataFrame):
        raise DataError(
            f"modality {name!r} is a {type(table).__name__}; from_dataframes takes DataFrames"
            ": wrap it in pandas.DataFrame(values, index=ids)"
        )
    if id_column is not None:
        if id_column not in table.columns:
            raise DataError(
                f"modality {name!r} has no column {id_column!r}; id_column is in every table: set"
                " it with table.reset_index(), or use the index (id_column=None) in all"
            )
        table = table.set_index(id_column)
    lost = table.index.isna()
    ids = [None if gone else key for key, gone in zip(table.index.tolist(), lost, strict=True)]
    for column, kind in zip(table.columns, table.dtypes, strict=True):
        if not pandas.api.types.is_numeric_dtype(kind):
            raise DataError(
                f"modality {name!r}, column {column!r} has dtype {kind}; columns are numbers"
                f": use pandas.get_dummies(table, columns=[{column!r}], dtype=float), or drop it"
            )
    plain = [kind if isinstance(kind, np.dtype) else np.dtype(float) for kind in table.dtypes]
    common = np.result_type(*plain) if plain else np.dtype(float)
    missing = {"na_value": np.nan} if common.kind == "f" else {}
    return _source(name, table.to_numpy(dtype=common, **missing), ids)


def from_folder(path: Path, modalities: Iterable[str] | None, id_column: str | None) -> Table:
    """Read a folder, one file per modality; see `IncompleteDataset.from_folder`."""
    files = _files(path)
    labels_file = files.pop(_LABELS, None)
    if modalities is not None:
        names = [modalities] if isinstance(modalities, str) else list(modalities)
        for name in names:
            if name not in files:
                raise DataError(
                    f"no file for modality {name!r} in {path}; there are {', '.join(files)}"
                    ": choose out of these"
                )
        files = {name: files[name] for name in names}
    if not files:
        raise DataError(
            f"no modalities in {path}: a folder has one file per modality, name.csv, name.npy or"
            " name.safetensors"
        )
    checks.check_names("files", files)
    sources = [_source(name, *_read(file, id_column)) for name, file in files.items()]
    if labels_file is None:
        return align(sources, None)
    codes, ids, *_ = _read(labels_file, id_column)
    if labels_file.suffix == ".csv":  # whole numbers as integers, so that classes stay classes
        codes = codes[:, 0] if codes.shape[1] == 1 else codes
        codes = codes.astype(np.int64) if (codes == np.round(codes)).all() else codes
    return align(sources, Source(name=_LABELS, values=codes, ids=ids))


def _files(path: Path) -> dict[str, Path]:
    """Modality name -> its file, sorted by name."""
    if not path.is_dir():
        raise FileFormatError(f"{path} is not a folder; give the folder that holds the files")
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix not in _SUFFIXES or file.stem.endswith((".present", ".observed")):
            continue
        if file.stem in files:
            raise DataError(
                f"modality {file.stem!r} has two files, {files[file.stem].name} and {file.name}"
                "; one file per modality: remove or rename one"
            )
        files[file.stem] = file
    return files


def _read(file: Path, id_column: str | None) -> tuple[Any, list[str] | None, Any, Any]:
    """Return values, identifiers, ``present`` and ``observed`` of a file and those beside it."""
    if file.suffix == ".csv":
        return *_csv(file, id_column), None, None
    lines = file.with_suffix(".ids.txt")
    ids = None
    if lines.exists():
        ids = [line.strip() for line in lines.read_text(encoding="utf-8").splitlines()]
    if file.suffix == ".safetensors":
        tensors = _safetensors(file)
        return tensors["values"], ids, tensors.get("present"), tensors.get("observed")
    masks = [file.with_suffix(f".{kind}.npy") for kind in ("present", "observed")]
    present, observed = (_npy(mask) if mask.exists() else None for mask in masks)
    return _npy(file), ids, present, observed


def _source(
    name: str, array: Any, ids: Sequence[Any] | None, present: Any = None, observed: Any = None
) -> Source:
    """Check one modality by itself."""
    x = checks.to_values(name, array)
    if ids is not None and len(ids) != len(x):
        raise DataError(
            f"modality {name!r} has {len(x)} rows and {len(ids)} identifiers; one per row is"
            " needed: correct the list of identifiers"
        )
    if present is not None:
        present = checks.to_mask(f"present[{name!r}]", present, (len(x),))
    if observed is not None:
        observed = checks.to_mask(f"observed[{name!r}]", observed, tuple(x.shape))
    return Source(name=name, values=x, ids=ids, present=present, observed=observed)


def _npy(file: Path) -> Numbers:
    try:
        array: Numbers = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as err:
        raise FileFormatError(
            f"{file} cannot be read as a .npy file of numbers ({err}); pickled objects are"
            " refused: save it with numpy.save(file, array, allow_pickle=False)"
        ) from err
    return array


def _safetensors(file: Path) -> dict[str, Tensor]:
    """Read ``values`` and masks; tensors are mapped from the file, not copied."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors: dict[str, Tensor] = {n: opened.get_tensor(n) for n in list(opened.keys())}
    except (SafetensorError, OSError) as err:
        raise FileFormatError(
            f"{file} cannot be read as safetensors ({err}); write it anew"
        ) from err
    if "values" not in tensors or not set(tensors) <= {"values", "present", "observed"}:
        raise FileFormatError(
            f"{file} holds the tensors {', '.join(sorted(tensors)) or '(none)'}; a modality has"
            " 'values' and optionally 'present' and 'observed': rename them"
        )
    return tensors


def _csv(file: Path, id_column: str | None) -> tuple[Numbers, list[str] | None]:
    """Read numbers ``(R, columns)`` and identifiers."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        header, *rows = [row for row in csv.reader(stream) if row] or [[]]
    _check_header(file.name, header, id_column)
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(
                f"{file.name}, line {line}: {len(row)} cells under {len(header)} columns; every"
                " line needs one cell per column: correct the file"
            )
    columns = [place for place, column in enumerate(header) if column != id_column]
    numbers = [
        _number(row[place], file, line, header[place])
        for line, row in enumerate(rows, start=2)
        for place in columns
    ]
    ids = None
    if id_column is not None:
        ids = [row[header.index(id_column)].strip() for row in rows]
    return np.array(numbers).reshape(len(rows), len(columns)), ids


def _check_header(name: str, header: list[str], id_column: str | None) -> None:
    twice = [column for column in header if header.count(column) > 1]
    shown = ", ".join(header[:8]) + (", ..." if len(header) > 8 else "")
    rules = (
        (id_column is not None and id_column not in header,
         f"has no column {id_column!r}; its columns are {shown}: use one of these"),
        ("" in header and id_column != "",
         "has a column without a name, perhaps the index of a data frame; pass id_column='' if"
         " it holds identifiers, or write the file without it"),
        (bool(twice), f"has two columns named {''.join(twice[:1])!r}; names stand once: rename"
         " one"),
        (not set(header) - {id_column},
         "has no columns of numbers; a modality needs at least one: add columns or leave the"
         " file out"),
    )  # fmt: skip
    for broken, message in rules:
        if broken:
            raise DataError(f"{name} {message}")


def _number(cell: str, file: Path, line: int, column: str) -> float:
    text = cell.strip()
    try:
        return math.nan if text.lower() in _MISSING else float(text)
    except ValueError:
        raise DataError(
            f"{file.name}, line {line}, column {column!r}: {cell!r} is not a number; if the column"
            " holds identifiers, pass id_column=; if categories, turn them into one-hot columns"
            " (pandas.get_dummies) and use from_dataframes"
        ) from None


def align(sources: Sequence[Source], labels: Source | None) -> Table:
    """Bring modalities to common rows, in the order in which identifiers first appear.

    Without identifiers, row i is the same subject everywhere.
    """
    tensors = {source.name: source.values for source in sources}
    named = [source.name for source in sources if source.ids is not None]
    codes = None if labels is None else labels.values
    places: dict[str, Tensor] = {}
    ids: Ids | None = None
    if named:
        for source in sources:
            if source.ids is None:
                raise DataError(
                    f"modality {source.name!r} has no row identifiers and {named[0]!r} has"
                    "; rows are aligned by identifiers in all tables or in none: add them"
                )
        known = {s.name: _places(f"modality {s.name!r}", s.ids or ()) for s in sources}
        _same_kind(known)
        order = list(dict.fromkeys(key for place in known.values() for key in place))
        shared = sum(all(key in place for place in known.values()) for key in order)
        text = "aligned %d rows by id, %d of them in all %d tables"
        logger.info(text, len(order), shared, len(known))
        places = {
            name: torch.tensor([place.get(key, -1) for key in order])
            for name, place in known.items()
        }
        ids = np.asarray(order)
        ids = ids if ids.dtype.kind in "iuUS" else ids.astype(str)
        codes = None if labels is None else _labels_by_id(labels, order)
    else:
        checks.common_length(tensors)
        if labels is not None and labels.ids is not None:
            raise DataError(
                "the labels have row identifiers and the modalities have none: add them there,"
                " or leave them out here"
            )
    present = {s.name: s.present for s in sources if s.present is not None}
    observed = {s.name: s.observed for s in sources if s.observed is not None}
    return Table.of(tensors, present, observed, codes, places, ids)


def _places(what: str, ids: Sequence[Any]) -> dict[Any, int]:
    """Identifier -> row number, after refusing missing and repeated ones."""
    place: dict[Any, int] = {}
    for row, key in enumerate(ids):
        if key is None or key == "" or key != key:
            raise DataError(f"{what}, row {row}: no identifier; every row needs one: fill it in")
        if key in place:
            raise DataError(
                f"{what}: identifier {key!r} stands in rows {place[key]} and {row}; rows are"
                " aligned by it, so it may stand once: drop or merge the repeated rows"
            )
        place[key] = row
    return place


def _same_kind(places: dict[str, dict[Any, int]]) -> None:
    kinds = {
        name: "/".join(sorted({"text" if isinstance(k, str) else type(k).__name__ for k in place}))
        for name, place in places.items()
    }
    (first, kind), *others = kinds.items()
    for name, other in others:
        if other != kind:
            raise DataError(
                f"identifiers of {name!r} are {other} and those of {first!r} {kind}, so no row"
                " would match; convert them to one type, for example by"
                " table.index.astype(str)"
            )


def _labels_by_id(labels: Source, order: list[Any]) -> Any:
    if labels.ids is None:
        raise DataError(
            "the labels have no row identifiers, and rows are aligned by identifiers: pass"
            " a Series indexed by them, or a CSV file with the id column"
        )
    place = _places("labels", labels.ids)
    for key in order:
        if key not in place:
            raise DataError(
                f"labels: no label for row {key!r}; every row needs one: add it, drop the row,"
                " or give 'unknown' a code of its own"
            )
    return np.asarray(labels.values)[[place[key] for key in order]]

"""Readers: pandas tables, and folders of CSV, .npy and safetensors files. No pickle anywhere."""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from multivae_core.data import checks
from multivae_core.data.align import Labels, Source, align
from multivae_core.data.storage import Table
from multivae_core.errors import DataError, FileFormatError

__all__ = ["from_dataframes", "from_folder"]

_SUFFIXES = (".csv", ".npy", ".safetensors")
_MISSING = {"", "na", "nan", "null", "none"}
_LABELS = "labels"


def from_dataframes(tables: Mapping[str, Any], id_column: str | None, labels: Any) -> Table:
    """Align tables by identifier; see `IncompleteDataset.from_dataframes`."""
    pandas = _pandas()
    if not isinstance(tables, Mapping):
        raise DataError(
            f"tables is a {type(tables).__name__}; modalities have names: pass a mapping"
            " {'name': frame, ...}"
        )
    names = checks.check_names(tables)
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
    return align(sources, Labels(values=labels.to_numpy(), ids=labels.index.tolist()))


def _pandas() -> Any:
    try:
        return importlib.import_module("pandas")
    except ImportError as err:
        raise DataError(
            "from_dataframes needs pandas, which is not installed"
            ": pip install 'multivae-core[dataframes]'"
        ) from err


def _frame(pandas: Any, name: str, table: Any, id_column: str | None) -> Source:
    if not isinstance(table, pandas.DataFrame):
        raise DataError(
            f"modality {name!r} is a {type(table).__name__}; from_dataframes takes DataFrames"
            ": wrap it in pandas.DataFrame(values, index=ids)"
        )
    if id_column is None:
        keys = table.index
    elif id_column in table.columns:
        keys = table[id_column]
        table = table.drop(columns=[id_column])
    else:
        raise DataError(
            f"modality {name!r} has no column {id_column!r}; id_column is in every table: set it"
            " with table.reset_index(), or use the index (id_column=None) in all"
        )
    ids = [None if lost else key for key, lost in zip(keys.tolist(), keys.isna(), strict=True)]
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


def from_folder(
    path: Path,
    modalities: Iterable[str] | None,
    id_column: str | None,
    label_column: tuple[str, str] | None,
) -> Table:
    """Read a folder, one file per modality; see `IncompleteDataset.from_folder`."""
    files = _files(path)
    labels_file = files.pop(_LABELS, None)
    files = _chosen(path, files, modalities)
    checks.check_names(files)
    if label_column is not None and label_column[0] not in files:
        raise DataError(
            f"label_column names modality {label_column[0]!r}, which is not read; the folder"
            f" gives {', '.join(files)}: use (modality, column)"
        )
    sources, labels = [], None
    for name, file in files.items():
        wanted = label_column[1] if label_column and label_column[0] == name else None
        source, found = _read_file(name, file, id_column, wanted)
        sources.append(source)
        labels = found or labels
    if labels_file is not None:
        if labels is not None:
            raise DataError(
                f"{labels_file.name} and label_column both give labels; leave one of them out"
            )
        labels = _labels_file(labels_file, id_column)
    return align(sources, labels)


def _chosen(
    path: Path, files: dict[str, Path], modalities: Iterable[str] | None
) -> dict[str, Path]:
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
    return files


def _files(path: Path) -> dict[str, Path]:
    """Modality name -> its file, sorted by name."""
    if not path.is_dir():
        raise FileFormatError(f"{path} is not a folder; give the folder that holds the files")
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        name = file.name.removesuffix(file.suffix)
        if file.suffix not in _SUFFIXES or name.endswith((".present", ".observed")):
            continue
        if name in files:
            raise DataError(
                f"modality {name!r} has two files, {files[name].name} and {file.name}; one file"
                " per modality: remove or rename one"
            )
        files[name] = file
    return files


def _read_file(
    name: str, file: Path, id_column: str | None, label_column: str | None
) -> tuple[Source, Labels | None]:
    if file.suffix == ".csv":
        numbers, ids, labels = _csv(file, id_column, label_column)
        return _source(name, numbers, ids), labels
    if label_column is not None:
        raise DataError(
            f"label_column: {file.name} has no named columns; put the labels into labels.npy"
        )
    ids = _ids_file(name, file)
    if file.suffix == ".npy":
        masks = {
            kind: _npy(mask) if (mask := file.with_name(f"{name}.{kind}.npy")).exists() else None
            for kind in ("present", "observed")
        }
        return _source(name, _npy(file), ids, **masks), None
    tensors = _safetensors(file)
    values = tensors.pop("values")
    return _source(name, values, ids, tensors.get("present"), tensors.get("observed")), None


def _source(
    name: str,
    array: Any,
    ids: Sequence[Any] | None,
    present: Any = None,
    observed: Any = None,
) -> Source:
    """Check one modality by itself."""
    x = checks.to_values(name, array)
    if ids is not None and len(ids) != len(x):
        raise DataError(
            f"modality {name!r} has {len(x)} rows and {len(ids)} identifiers; one per row is"
            " needed: correct the list of identifiers"
        )
    columns = checks.present_masks(None if present is None else {name: present}, (name,), len(x))
    elements = checks.observed_masks(None if observed is None else {name: observed}, {name: x})
    seen, partly = checks.modality_masks(name, x, columns.get(name), elements.get(name))
    return Source(name=name, values=x, present=seen, observed=partly, ids=ids)


def _npy(file: Path) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.load(file, mmap_mode="r", allow_pickle=False)
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
            names = list(opened.keys())
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as err:
        raise FileFormatError(
            f"{file} cannot be read as safetensors ({err}); write it anew"
        ) from err
    unknown = sorted(set(tensors) - {"values", "present", "observed"})
    if unknown or "values" not in tensors:
        raise FileFormatError(
            f"{file} holds the tensors {', '.join(sorted(tensors)) or '(none)'}; a modality has"
            " 'values' and optionally 'present' and 'observed': rename them"
        )
    return tensors


def _csv(
    file: Path, id_column: str | None, label_column: str | None
) -> tuple[np.ndarray[Any, Any], list[str] | None, Labels | None]:
    """Read numbers ``(R, columns)``, identifiers and labels."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        header, *rows = [row for row in csv.reader(stream) if row] or [[]]
    _check_header(file, header, [c for c in (id_column, label_column) if c is not None])
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(
                f"{file.name}, line {line}: {len(row)} cells under {len(header)} columns; every"
                " line needs one cell per column: correct the file"
            )
    numbers = {
        column: _numbers(file, column, [row[i] for row in rows])
        for i, column in enumerate(header)
        if column != id_column
    }
    ids = None
    if id_column is not None:
        place = header.index(id_column)
        ids = [row[place].strip() for row in rows]
    labels = None
    if label_column is not None:
        labels = Labels(values=_codes(numbers.pop(label_column)), ids=ids)
    if not numbers:
        raise DataError(
            f"{file.name} has no columns of numbers; a modality needs at least one: add columns"
            " or leave the file out"
        )
    return np.stack(list(numbers.values()), axis=1), ids, labels


def _check_header(file: Path, header: list[str], needed: list[str]) -> None:
    for column in needed:
        if column not in header:
            raise DataError(
                f"{file.name} has no column {column!r}; its columns are"
                f" {', '.join(header[:8])}{', ...' if len(header) > 8 else ''}: use one of these"
            )
    for column in header:
        if column == "" and column not in needed:
            raise DataError(
                f"{file.name} has a column without a name, perhaps the index of a data frame"
                "; pass id_column='' if it holds identifiers, or write the file without it"
            )
        if header.count(column) > 1:
            raise DataError(
                f"{file.name} has two columns named {column!r}; names stand once: rename one"
            )


def _numbers(file: Path, column: str, cells: list[str]) -> np.ndarray[Any, Any]:
    try:
        return np.array([math.nan if c.strip().lower() in _MISSING else float(c) for c in cells])
    except ValueError:
        line = next(i for i, c in enumerate(cells, start=2) if not _is_number(c))
        raise DataError(
            f"{file.name}, line {line}, column {column!r}: {cells[line - 2]!r} is not a number"
            "; if the column holds identifiers, pass id_column=; if categories, turn them into"
            " one-hot columns (pandas.get_dummies) and use from_dataframes"
        ) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in _MISSING
    return True


def _labels_file(file: Path, id_column: str | None) -> Labels:
    if file.suffix == ".csv":
        numbers, ids, _ = _csv(file, id_column, None)
        return Labels(values=_codes(numbers[:, 0] if numbers.shape[1] == 1 else numbers), ids=ids)
    values = _npy(file) if file.suffix == ".npy" else _safetensors(file)["values"]
    return Labels(values=values, ids=_ids_file(_LABELS, file))


def _ids_file(name: str, file: Path) -> list[str] | None:
    lines = file.with_name(f"{name}.ids.txt")
    if not lines.exists():
        return None
    return [line.strip() for line in lines.read_text(encoding="utf-8").splitlines()]


def _codes(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Whole numbers as integers, so that classes stay classes."""
    whole = np.isfinite(numbers).all() and (numbers == np.round(numbers)).all()
    return numbers.astype(np.int64) if whole else numbers

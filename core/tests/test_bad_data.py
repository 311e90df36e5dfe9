"""Bad data: every refusal names the thing, the rule and the remedy."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multivae_core.data import IncompleteDataset
from multivae_core.data.iterate import row_batches
from multivae_core.errors import DataError, FileFormatError, MultivaeError

N = 6
nan, inf = np.nan, np.inf


def x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape or (N, 3))


def holed(row: int, value: float = nan) -> np.ndarray:
    array = x()
    array[row, 1] = value
    return array


def two(**options: object) -> IncompleteDataset:
    return IncompleteDataset({"image": x(), "text": x(N, 2)}, **options)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, bool)


labelled = {"labels": np.arange(N) % 2}

CONSTRUCTION: list[tuple[str, Callable[[], object], str]] = [
    ("not a mapping", lambda: IncompleteDataset([x()]),
     "values is a list; modalities have names: pass a mapping {'name': array, ...}"),
    ("no modalities", lambda: IncompleteDataset({}),
     "no modalities: a data set needs at least one; pass {'name': array, ...}"),
    ("name with a slash", lambda: IncompleteDataset({"a/b": x()}),
     "modality name 'a/b': names consist of letters, digits, '_' and '-'; rename it, for example"
     " to 'a_b'"),
    ("name with a dot", lambda: IncompleteDataset({"a.b": x()}),
     "rename it, for example to 'a_b'"),
    ("empty name", lambda: IncompleteDataset({"": x()}), "modality name '': names consist of"),
    ("name with a line break", lambda: IncompleteDataset({"a\n": x()}), "modality name 'a\\n'"),
    ("name that is a number", lambda: IncompleteDataset({3: x()}), "modality name 3: names"),
    ("zero rows", lambda: IncompleteDataset({"image": x(0, 3)}),
     "modality 'image' has zero rows, shape (0, 3): empty data cannot be used; check how it was"),
    ("empty list", lambda: IncompleteDataset({"image": []}),
     "modality 'image' has shape (0,): rows need at least one feature axis"),
    ("no features", lambda: IncompleteDataset({"image": x(3, 0)}),
     "modality 'image' has rows without a value, shape (3, 0)"),
    ("no feature axis", lambda: IncompleteDataset({"age": x(N)}),
     "modality 'age' has shape (6,): rows need at least one feature axis, (N, features); for one"
     " value per row pass x.reshape(-1, 1)"),
    ("a number", lambda: IncompleteDataset({"age": 3.0}), "modality 'age' has shape ()"),
    ("unequal lengths", lambda: IncompleteDataset({"image": x(), "text": x(5, 2)}),
     "modality 'text' has 5 rows and 'image' has 6: row i is the same subject in all of them;"
     " give a row that lacks a modality NaN there, or align tables with"),
    ("ragged rows", lambda: IncompleteDataset({"text": [[1.0, 2.0], [3.0]]}),
     "modality 'text': not an array"),
    ("text", lambda: IncompleteDataset({"text": [["a", "b"]] * N}),
     "modality 'text': dtype <U1 is not numeric (bool, integers and floats are); turn categories"
     " into one-hot columns or codes"),
    ("objects", lambda: IncompleteDataset({"text": [[1.0, None]] * N}),
     "modality 'text': dtype object is not numeric"),
    ("dates", lambda: IncompleteDataset({"day": np.zeros((N, 1), "M8[D]")}),
     "dtype datetime64[D] is not numeric"),
    ("complex numbers",
     lambda: IncompleteDataset({"wave": torch.zeros(N, 2, dtype=torch.complex64)}),
     "modality 'wave': dtype torch.complex64 is not supported"),
    ("sparse tensor", lambda: IncompleteDataset({"image": torch.eye(N).to_sparse()}),
     "modality 'image': sparse tensors are not supported; pass x.to_dense()"),
    ("masked array", lambda: IncompleteDataset({"image": np.ma.masked_array(x(), x() > 0)}),
     "modality 'image': the mask of a numpy masked array would be lost; pass x.filled(numpy.nan)"),
    ("huge integers", lambda: IncompleteDataset({"id": np.full((N, 1), 2**64 - 1, np.uint64)}),
     "modality 'id': values above 2**63 - 1 do not fit; pass x.astype(float)"),
    ("inf without a mask", lambda: IncompleteDataset({"image": holed(2, -inf), "text": x(N, 2)}),
     "modality 'image', row 2: inf is neither a value nor a hole (1 such value, in 1 row);"
     " replace it by NaN if it means missing, or clip it"),
    ("NaN where the element mask says observed",
     lambda: IncompleteDataset({"image": holed(4)}, observed={"image": ones(N, 3)}),
     "modality 'image', row 4: NaN where the mask says observed (1 such value, in 1 row); mark"
     " it as missing in observed=, or pass no mask"),
    ("inf where the element mask says observed",
     lambda: IncompleteDataset({"image": holed(4, inf)}, observed={"image": ones(N, 3)}),
     "modality 'image', row 4: inf where the mask says observed"),
    ("NaN where the row mask says present",
     lambda: IncompleteDataset({"image": holed(3), "text": x(N, 2)}, present=ones(N, 2)),
     "modality 'image', row 3: NaN where the mask says observed"),
    ("row with nothing", lambda: IncompleteDataset({"image": [[nan], [1.0]]}),
     "row 0 has nothing observed in any modality (1 such row): a row needs something to learn"
     " from; drop these rows, or pass allow_empty_rows=True"),
    ("present: unknown modality",
     lambda: two(present={"image": ones(N), "text": ones(N), "imgae": ones(N)}),
     "present: unknown modality 'imgae'; this data has image, text: did you mean 'image'?"),
    ("present: a modality without a mask", lambda: two(present={"image": ones(N)}),
     "present: no mask for modality 'text'; a mapping has one for every modality: add 'text':"
     " numpy.ones(6, bool) if it is always there"),
    ("present: shape (N, 1)", lambda: two(present={"image": ones(N, 1), "text": ones(N)}),
     "present['image'] has shape (6, 1), expected (6,): pass mask[:, 0]"),
    ("present: too short", lambda: two(present={"image": ones(5), "text": ones(N)}),
     "present['image'] has shape (5,), expected (6,)"),
    ("present: wrong number of columns", lambda: two(present=ones(N, 3)),
     "present has shape (6, 3), expected (6, 2)"),
    ("present: numbers", lambda: two(present=np.ones((N, 2))),
     "present has dtype float64: masks are bool, True where seen; convert it, for example by"
     " mask == 1"),
    ("observed: an array", lambda: two(observed=ones(N, 3)),
     "observed is a ndarray; modalities differ in shape, so it is a mapping: pass {'name': mask"),
    ("observed: unknown modality", lambda: two(observed={"sound": ones(N, 3)}),
     "observed: unknown modality 'sound'; this data has image, text: use names out of these"),
    ("observed: shape (N, 1)", lambda: two(observed={"image": ones(N, 1)}),
     "observed['image'] has shape (6, 1), expected (6, 3): a mask of whole rows goes to present=,"
     " one bool per row"),
    ("observed: shape of the transpose", lambda: two(observed={"image": ones(3, N)}),
     "observed['image'] has shape (3, 6), expected (6, 3): pass a mask of that shape"),
    ("observed: integers", lambda: two(observed={"image": torch.ones(N, 3, dtype=torch.int64)}),
     "observed['image'] has dtype int64: masks are bool"),
    ("short labels", lambda: two(labels=[0, 1]),
     "labels: 2 labels for 6 rows; one per row is needed: check that both were selected alike"),
    ("one label", lambda: two(labels=1), "labels: 1 label for 6 rows"),
    ("NaN labels", lambda: two(labels=[0.0, 1, nan, 1, nan, 0]),
     "labels: NaN or inf in row 2 (2 such rows); every row needs a label: drop these rows or"),
    ("text labels", lambda: two(labels=list("aabbcc")),
     "labels: dtype <U1 is not numeric (bool, integers and floats are); pass"
     " numpy.unique(labels, return_inverse=True)[1]"),
]  # fmt: skip

USE: list[tuple[str, Callable[[], object], str]] = [
    ("restrict: unknown", lambda: two().restrict({"images"}),
     "restrict: unknown modality 'images'; this data has image, text: did you mean 'image'?"),
    ("restrict: mask of another shape", lambda: two().restrict(ones(N, 1)),
     "restrict: the mask has shape (6, 1), expected (6, 2)"),
    ("restrict: numbers", lambda: two().restrict(np.ones((N, 2))),
     "restrict: the mask has dtype float64: masks are bool"),
    ("subset: out of range", lambda: two().subset([0, 6]),
     "index: row 6 does not exist; this data has rows 0 to 5, counted from the front"),
    ("subset: negative", lambda: two().subset([-1]), "index: row -1 does not exist"),
    ("subset: fractions", lambda: two().subset([0.5]),
     "index: got float64 of shape (1,); rows are selected by a list of whole numbers, a bool"),
    ("subset: one number", lambda: two().subset(3), "index: got int64 of shape ()"),
    ("subset: short mask", lambda: two().subset(ones(3)),
     "index: a bool mask has shape (3,), expected (6,), one per row"),
    ("subset: nothing", lambda: two().subset([]),
     "subset: no rows were selected; a data set needs at least one"),
    ("batch: out of range", lambda: two().batch(torch.tensor([99])),
     "index: row 99 does not exist"),
    ("split: too much", lambda: two().split(0.7, 0.4),
     "split: the parts (0.7, 0.4) sum to 1.1, more than 1; make them smaller"),
    ("split: too many rows", lambda: two().split(4, 3), "sum to 7, more than 6 rows"),
    ("split: shares and counts", lambda: two().split(0.5, 2),
     "split: parts are (0.5, 2); give positive shares such as (0.7, 0.15) or counts"),
    ("split: nothing", lambda: two().split(), "split: parts are (); give positive shares"),
    ("split: negative", lambda: two().split(-0.5), "split: parts are (-0.5,); give positive"),
    ("split: NaN", lambda: two().split(nan), "split: parts are (nan,); give positive"),
    ("split: a part without rows", lambda: two().split(0.99, 0.001),
     "split: part 2 of 3 would have no rows out of 6; give it a larger share or leave it out"),
    ("split: seed", lambda: two().split(0.5, seed=None),
     "split: seed is None; use a whole number"),
    ("concat: not a data set", lambda: two().concat({"image": x()}),
     "concat: item 1 is a dict; pass data sets"),
    ("concat: lacks a modality", lambda: two().concat(IncompleteDataset({"image": x()})),
     "concat: data set 1 has no modality 'text'; all need the same modalities: add it with NaN"),
    ("concat: extra modality", lambda: IncompleteDataset({"image": x()}).concat(two()),
     "concat: data set 1: unknown modality 'text'; this data has image"),
    ("concat: shapes", lambda: two().concat(IncompleteDataset({"image": x(), "text": x(N, 3)})),
     "concat: data set 1, modality 'text': torch.float64 of shape (3,) does not go with"
     " torch.float64 of shape (2,); cast or reshape it first"),
    ("concat: labels in one", lambda: two().concat(two(**labelled)),
     "concat: labels in some of the data sets only; give all or none"),
    ("moments: unknown", lambda: two().moments("sound"), "moments: unknown modality 'sound'"),
    ("hide: unknown modality", lambda: two().hide({"txt": 0.5}, seed=0),
     "hide: unknown modality 'txt'; this data has image, text: did you mean 'text'?"),
    ("hide: rate in percent", lambda: two().hide(30, seed=0),
     "hide: the rate of modality 'image' is 30; rates are shares from 0 to 1: write 0.3 for"),
    ("hide: NaN rate", lambda: two().hide({"text": nan}, seed=0),
     "rate of modality 'text' is nan"),
    ("hide: mechanism", lambda: two().hide(0.3, seed=0, mechanism="random"),
     "hide: unknown mechanism 'random': use one of mcar, mar, mnar"),
    ("hide: level", lambda: two().hide(0.3, seed=0, level="row"),
     "hide: unknown level 'row': use one of modality, element"),
    ("hide: seed", lambda: two().hide(0.3, seed=0.5), "hide: seed is 0.5; use a whole number"),
    ("hide: strength", lambda: two().hide(0.3, seed=0, strength=inf),
     "hide: strength is inf; it is"),
    ("hide: MAR without labels", lambda: two().hide(0.3, seed=0, mechanism="mar"),
     "hide: mechanism 'mar' depends on labels, one number per row, and this data has none: pass"
     " labels= to the data set, or depends_on= an always observed modality"),
    ("hide: MAR by an unknown modality",
     lambda: two().hide(0.3, seed=0, mechanism="mar", depends_on="sound"),
     "hide, depends_on: unknown modality 'sound'"),
    ("hide: MAR by an incomplete modality",
     lambda: IncompleteDataset({"image": holed(1), "text": x(N, 2)}).hide(
         0.3, seed=0, mechanism="mar", depends_on="image"),
     "hide: depends_on='image' has holes of its own, and MAR depends on what is always seen"),
    ("hide: MAR of its own cause",
     lambda: two().hide({"text": 0.3}, seed=0, mechanism="mar", depends_on="text"),
     "hide: modality 'text' cannot be hidden and decide what is hidden (MAR)"),
    ("hide: dependence without MAR", lambda: two().hide(0.3, seed=0, depends_on="text"),
     "hide: depends_on='text' has no meaning for mechanism 'mcar'"),
    ("hide: constant labels", lambda: two(labels=[1] * N).hide(0.3, seed=0, mechanism="mar"),
     "hide: labels has the same value in every row, so nothing can depend on it"),
    ("hide: constant modality",
     lambda: IncompleteDataset({"flat": np.ones((N, 2))}).hide(0.3, seed=0, mechanism="mnar"),
     "hide: modality 'flat' has the same value in every row"),
    ("hide: keep one element",
     lambda: two().hide(0.1, seed=0, level="element", keep_one=True),
     "hide: keep_one is about whole modalities: use level='modality'"),
    ("batches: no rows", lambda: two().batches(0),
     "batches: batch_size is 0; use a whole number from 1 up"),
    ("batches: fraction", lambda: two().batches(2.5), "batches: batch_size is 2.5"),
    ("batches: epoch", lambda: two().batches(2, epoch=-1), "batches: epoch is -1"),
    ("batches: start", lambda: row_batches(N, 2, start=4),
     "batches: start is 4, but an epoch has 3 batches; use 0 to 3"),
    ("batches: workers", lambda: two().batches(2, workers=-1), "batches: workers is -1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("act", "message"), [pytest.param(a, m, id=i) for i, a, m in CONSTRUCTION + USE]
)
def test_refusal(act: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        act()


def test_refusals_are_value_errors_of_the_library() -> None:
    assert issubclass(DataError, ValueError)
    assert issubclass(DataError, MultivaeError)


def test_nan_as_filler_under_a_hole_is_allowed() -> None:
    mask = ~np.isnan(holed(2))
    data = IncompleteDataset({"image": holed(2)}, observed={"image": mask})
    assert data.batch().values["image"][2, 1] == 0.0
    rows = np.arange(N) != 2
    data = IncompleteDataset(
        {"image": holed(2), "text": x(N, 2)}, present=np.stack([rows, ones(N)], axis=1)
    )
    assert (data.batch().values["image"][2] == 0).all()


def test_no_mask_means_everything_is_observed() -> None:
    assert two(observed={"text": ones(N, 2)}).present.all()


def test_workers_need_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(DataError, match="this system cannot; use workers=0"):
        two().batches(2, workers=1)


CSV: list[tuple[str, dict[str, str], dict[str, object], str]] = [
    ("no modalities", {"notes.txt": "hello"}, {}, "no modalities in"),
    ("unknown modality", {"a.csv": "x\n1\n"}, {"modalities": ["b"]},
     "no file for modality 'b' in"),
    ("illegal name", {"a b.csv": "x\n1\n"}, {}, "modality name 'a b': names consist of letters"),
    ("two files", {"a.csv": "x\n1\n", "a.npy": ""}, {},
     "modality 'a' has two files, a.csv and a.npy; one file per modality"),
    ("unequal lengths", {"a.csv": "x\n1\n", "b.csv": "x\n1\n2\n"}, {},
     "modality 'b' has 2 rows and 'a' has 1: row i is the same subject in all of them"),
    ("text", {"a.csv": "x,y\n1,2\n3,high\n"}, {},
     "a.csv, line 3, column 'y': 'high' is not a number; if the column holds identifiers, pass"),
    ("ragged", {"a.csv": "x,y\n1,2\n3\n"}, {},
     "a.csv, line 3: 1 cells under 2 columns; every line needs one cell per column"),
    ("unnamed column", {"a.csv": ",x\n0,1\n"}, {},
     "a.csv has a column without a name, perhaps the index of a data frame"),
    ("repeated column", {"a.csv": "x,x\n0,1\n"}, {}, "a.csv has two columns named 'x'"),
    ("no id column", {"a.csv": "x\n1\n"}, {"id_column": "id"}, "a.csv has no column 'id'; its"),
    ("only ids", {"a.csv": "id\n1\n"}, {"id_column": "id"}, "a.csv has no columns of numbers"),
    ("repeated id", {"a.csv": "id,x\np,1\nq,2\np,3\n"}, {"id_column": "id"},
     "modality 'a': identifier 'p' stands in rows 0 and 2; rows are aligned by it, so it may stand"
     " once: drop or merge the repeated rows"),
    ("missing id", {"a.csv": "id,x\np,1\n,2\n"}, {"id_column": "id"},
     "modality 'a', row 1: no identifier; every row needs one: fill it in"),
    ("no rows", {"a.csv": "x,y\n"}, {}, "modality 'a' has zero rows"),
    ("empty file", {"a.csv": ""}, {}, "a.csv has no columns of numbers"),
    ("no label for a row", {"a.csv": "id,x\np,1\nq,2\n", "labels.csv": "id,c\np,1\n"},
     {"id_column": "id"}, "labels: no label for row 'q'; every row needs one: add it"),
    ("missing label", {"a.csv": "x\n1\n2\n", "labels.csv": "c\n0\nna\n"}, {},
     "labels: NaN or inf in row 1"),
    ("row with nothing", {"a.csv": "x\n1\n\"\"\n"}, {}, "row 1 has nothing observed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "options", "message"), [pytest.param(f, o, m, id=i) for i, f, o, m in CSV]
)
def test_folder_refusal(
    tmp_path: Path, files: dict[str, str], options: dict[str, object], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        IncompleteDataset.from_folder(tmp_path, **options)


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="is not a folder; give the folder that holds"):
        IncompleteDataset.from_folder(tmp_path / "nowhere")


def test_npy_without_ids_beside_csv_with_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", x(1, 2))
    (tmp_path / "a.csv").write_text("id,x\np,1\n")
    with pytest.raises(DataError, match="modality 'b' has no row identifiers and 'a' has"):
        IncompleteDataset.from_folder(tmp_path, id_column="id")
    (tmp_path / "b.ids.txt").write_text("p\nq\n")
    with pytest.raises(DataError, match="modality 'b' has 1 rows and 2 identifiers"):
        IncompleteDataset.from_folder(tmp_path, id_column="id")


def test_safetensors_with_other_names(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(FileFormatError, match="holds the tensors x; a modality has 'values'"):
        IncompleteDataset.from_folder(tmp_path)


READ = IncompleteDataset.from_dataframes


def table(pd: Any) -> Any:
    return pd.DataFrame({"x": [1.0, 2.0]}, index=["p", "q"])


FRAMES: list[tuple[str, Callable[[Any], object], str]] = [
    ("not a mapping", lambda pd: READ([table(pd)]), "tables is a list; modalities have names"),
    ("an array", lambda pd: READ({"a": x()}),
     "modality 'a' is a ndarray; from_dataframes takes DataFrames: wrap it in"),
    ("repeated id", lambda pd: READ({"a": pd.concat([table(pd), table(pd)])}),
     "modality 'a': identifier 'p' stands in rows 0 and 2"),
    ("NaN id", lambda pd: READ({"a": table(pd).set_axis(["p", nan])}),
     "modality 'a', row 1: no ident"),
    ("missing id", lambda pd: READ({"a": table(pd).assign(i=pd.array([1, None], dtype="Int64"))},
                                   id_column="i"), "modality 'a', row 1: no identifier"),
    ("ids of two types", lambda pd: READ({"a": table(pd), "b": table(pd).set_axis([1, 2])}),
     "identifiers of 'b' are int and those of 'a' text, so no row would match; convert them"
     " to one type"),
    ("no id column", lambda pd: READ({"a": table(pd)}, id_column="who"),
     "modality 'a' has no column 'who'; id_column is in every table"),
    ("text column", lambda pd: READ({"a": table(pd).assign(sex=["f", "m"])}),
     "modality 'a', column 'sex' has dtype"),
    ("text column, remedy", lambda pd: READ({"a": table(pd).assign(sex=["f", "m"])}),
     "use pandas.get_dummies(table, columns=['sex'], dtype=float), or drop it"),
    ("no columns", lambda pd: READ({"a": table(pd)[[]]}), "modality 'a' has rows without a value"),
    ("labels without ids", lambda pd: READ({"a": table(pd)}, labels=[0, 1]),
     "labels is a list; rows are aligned by identifier: pass a Series indexed by it"),
    ("row without a label", lambda pd: READ({"a": table(pd)}, labels={"p": 1}),
     "labels: no label for row 'q'"),
    ("row with nothing", lambda pd: READ({"a": table(pd).assign(x=[nan, 1.0])}),
     "row 0 (id p) has nothing observed"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "message"), [pytest.param(a, m, id=i) for i, a, m in FRAMES])
def test_frame_refusal(act: Callable[[Any], object], message: str) -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match=re.escape(message)):
        act(pandas)

"""Every golden case whose model is installed, entry by entry.

The folder comes from the environment variable MULTIVAE_GOLDEN, by default ``../shared/golden``
seen from the repository.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch

from .adapter import Adapter, installed_as
from .adapters import adapter_of
from .case import Case, Entry, find_cases, golden_folder, readable
from .checks import check, kind_of

if TYPE_CHECKING:
    from .conftest import Ledger

pytestmark = pytest.mark.golden

FOLDER = golden_folder()
FOUND = find_cases(FOLDER)
if not FOUND:
    pytest.skip(
        f"no golden numbers in {FOLDER}; set MULTIVAE_GOLDEN to the folder that has them",
        allow_module_level=True,
    )
CASES, BROKEN = readable(FOUND)
INSTALLED = [case for case in CASES if installed_as(case.model) is not None]
ENTRIES = [(case, entry) for case in INSTALLED for entry in case.entries]


@pytest.fixture(scope="session", autouse=True)
def _planned(ledger: Ledger) -> None:
    for case in CASES:
        if case in INSTALLED:
            kinds = Counter(kind_of(entry) for entry in case.entries)
            ledger.planned[case.name] = (len(case.entries), kinds)
            ledger.models[case.name] = str(installed_as(case.model))
        else:
            ledger.absent[case.name] = (case.model, len(case.entries))


@pytest.fixture(scope="session")
def adapters() -> dict[str, Adapter]:
    return {}


def _checked() -> list[tuple[Case, Entry]]:
    return [each for each in ENTRIES if kind_of(each[1]) != "information"]


@pytest.mark.parametrize(
    ("case", "entry"),
    [pytest.param(*each, id=f"{each[0].name}-{each[1].label}") for each in _checked()],
)
def test_entry(case: Case, entry: Entry, adapters: dict[str, Adapter], ledger: Ledger) -> None:
    if case.name not in adapters:
        adapters[case.name] = adapter_of(case)
    if check(adapters[case.name], entry):
        ledger.done[case.name][kind_of(entry)] += 1
        ledger.incomplete[case.name] += entry["data"] == "incomplete"


def test_every_case_is_readable() -> None:
    assert not BROKEN


def test_every_entry_is_accounted_for(ledger: Ledger) -> None:
    if ledger.selective:
        pytest.skip("only some tests were asked for")
    assert not ledger.missing()


def test_numbers_are_double() -> None:
    for case in INSTALLED:
        assert case.content["dtype"] == "float64"
        kinds = {value.dtype for value in case.tensors.values()}
        assert kinds <= {torch.float64, torch.bool}

"""Running the checks: `check_model`, and `every_check` for pytest."""

from __future__ import annotations

__all__ = ["check_model", "every_check", "names", "run"]

import functools
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from multivae_core.errors import MultivaeError
from multivae_core.testing import checks_interface, checks_invariance, checks_loss, checks_truth
from multivae_core.testing.bench import Bench, Case
from multivae_core.testing.report import (
    Broken,
    ConformanceError,
    NotApplicable,
    Outcome,
    Report,
    recorded,
)

Check = Callable[[Bench], None]

CHECKS: dict[str, Check] = {
    name: check
    for module in (checks_interface, checks_invariance, checks_loss, checks_truth)
    for name, check in module.CHECKS.items()
}
"""Name -> check; the first line of its docstring is its rule."""


def names() -> tuple[str, ...]:
    """The names of all checks, in the order in which they run."""
    return tuple(CHECKS)


def run(check: str, bench: Bench) -> Outcome:
    """Run one check on a bench and say what came out.

    A check that stops with an error of its own counts as failed.
    """
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CHECKS[check](bench)
    except NotApplicable as reason:
        return Outcome(check, "n/a", str(reason), time.process_time() - began)
    except Broken as error:
        return Outcome(check, "FAILED", str(error), time.process_time() - began)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding about the model
        text = f"{_rule(check)}: {type(error).__name__}: {error}"
        return Outcome(check, "FAILED", text, time.process_time() - began)
    return Outcome(check, "ok", "", time.process_time() - began)


def check_model(
    model: str | type[Any] | Case, /, *, checks: Iterable[str] | None = None, **options: Any
) -> Report:
    """Check a model against every rule that all models keep.

    Args:
        model: A registered name, bare or qualified, a registered class, or a `Case`, which can
            say more.
        checks: Names of the checks to run; None: all, see `names`.
        options: Options of the model.

    Returns:
        The report; printed, it is a row of the table and the reasons for what is n/a.

    Raises:
        ConformanceError: Rules that were broken, one sentence each.
        UnknownComponentError: The model is not registered.
    """
    case = model if isinstance(model, Case) else Case(model=model, options=options)
    bench = Bench(case)
    chosen = names() if checks is None else tuple(checks)
    report = Report(case.name, tuple(run(check, bench) for check in chosen))
    if report.failures:
        listed = "\n".join(f"  {each.check}: {each.reason}" for each in report.failures)
        raise ConformanceError(f"{case.name} breaks {len(report.failures)} rules:\n{listed}")
    return report


def every_check(
    *cases: str | type[Any] | tuple[str, dict[str, Any]] | Case,
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes one pytest test of every check of every case.

    The test gets the argument ``check`` and calls it. A check that is n/a is shown as skipped.

    Args:
        cases: Models: names, classes, ``(name, options)`` or `Case`.
    """
    import pytest

    marked = []
    for each in cases:
        case = _case(each)
        bench = functools.cache(functools.partial(Bench, case))
        for check in names():
            call = functools.partial(_record, check, case.name, bench)
            marked.append(pytest.param(call, id=f"{case.name}-{check}"))
    return pytest.mark.parametrize("check", marked)


def _record(check: str, model: str, bench: Callable[[], Bench]) -> None:
    """Run one check as a test, and note the outcome for the table."""
    import pytest

    outcome = run(check, bench())
    recorded.setdefault(model, {})[check] = outcome
    if outcome.verdict == "FAILED":
        raise ConformanceError(f"{model}: {check}: {outcome.reason}")
    if outcome.verdict == "n/a":
        pytest.skip(str(outcome))


def _case(given: str | type[Any] | tuple[str, dict[str, Any]] | Case) -> Case:
    if isinstance(given, Case):
        return given
    if isinstance(given, tuple):
        return Case(model=given[0], options=given[1])
    if isinstance(given, str | type):
        return Case(model=given)
    raise MultivaeError(
        f"every_check takes names, classes, (name, options) or Case objects, got {given!r}"
    )


def _rule(check: str) -> str:
    return (CHECKS[check].__doc__ or check).strip().partition("\n")[0].rstrip(".")

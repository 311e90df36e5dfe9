"""The conformance kit: does a model keep the rules that every model keeps?

``check_model("mopoe")`` runs all checks. A package tests its own models in three lines:

    from multivae_core.testing import every_check
    @every_check("pool_vae")
    def test_kit(check): check()
"""

from __future__ import annotations

__all__ = [
    "Case", "ConformanceError", "LinearGaussian", "Report", "check_model", "every_check", "names",
]  # fmt: skip

from typing import TYPE_CHECKING

from multivae_core._lazy import lazy

if TYPE_CHECKING:
    from multivae_core.testing.bench import Case
    from multivae_core.testing.kit import check_model, every_check, names
    from multivae_core.testing.linear_gaussian import LinearGaussian
    from multivae_core.testing.report import ConformanceError, Report

# pytest imports this package at its start, for the plugin: nothing heavy before it is used.
_HOMES = {
    "Case": "bench",
    "ConformanceError": "report",
    "LinearGaussian": "linear_gaussian",
    "Report": "report",
    "check_model": "kit",
    "every_check": "kit",
    "names": "kit",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)

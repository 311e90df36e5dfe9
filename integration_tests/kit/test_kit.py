"""Every model of every plugin keeps every rule; the table is printed at the end."""

from __future__ import annotations

import pytest

from multivae_core.testing import every_check

from .cases import every_case

pytestmark = pytest.mark.slow


@every_check(*every_case())
def test_kit(check):
    check()

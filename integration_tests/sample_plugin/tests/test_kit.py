"""The model of this package keeps every rule that all models keep."""

from multivae_core.testing import every_check


@every_check("pool_vae")
def test_kit(check):
    check()

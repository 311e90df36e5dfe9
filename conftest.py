"""Property tests take the same examples in every run: a red test is then red for everyone."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.internal.conjecture import providers

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
# Constants of the project's own modules would be tried as well, but only of those that happen to
# be loaded: other examples in a part of the tests than in all of them. There is no setting for it.
providers.is_local_module_file = lambda path: False

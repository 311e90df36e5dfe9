"""One adapter per model: the golden's options in our words, and our terms in its units.

An adapter branches on the model and its configuration, never on a case's name, and refuses every
option, value and argument that it does not know.
"""

from __future__ import annotations

from ..adapter import Adapter, installed_as, plain
from ..case import Case, CaseError
from .mmvae import MMVAE
from .mopoe import MoPoE
from .mvae import MVAE

__all__ = ["ADAPTERS", "adapter_of"]

ADAPTERS: dict[str, type[Adapter]] = {
    "mmvae": MMVAE,
    "mopoe": MoPoE,
    "mvae": MVAE,
}
"""Our name of a model, without punctuation -> its adapter."""


def adapter_of(case: Case) -> Adapter:
    """The adapter of an installed model."""
    name = installed_as(case.model)
    if name is None or plain(name) not in ADAPTERS:
        raise CaseError(f"{case.model} is installed as {name!r}, and no adapter knows it")
    return ADAPTERS[plain(name)](case)

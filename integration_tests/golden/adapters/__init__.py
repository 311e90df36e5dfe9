"""One adapter per model: the golden's options in our words, and our terms in its units.

An adapter branches on the model and its configuration, never on a case's name, and refuses every
option, value and argument that it does not know.
"""

from __future__ import annotations

from ..adapter import Adapter, installed_as, plain
from ..case import Case, CaseError
from .cmvae import CMVAE
from .codes import MAAE, MWAE
from .crmvae import CRMVAE
from .cvae import CVAE
from .dmvae import DMVAE
from .dvcca import DVCCA
from .gpoe import GPoE
from .jmvae import JMVAE
from .jnf import JNF
from .mcvae import MCVAE
from .mhvae import MHVAE
from .mmjsd import MMJSD
from .mmvae import MMVAE
from .mmvae_plus import MMVAEPlus
from .mopoe import MoPoE
from .mvae import MVAE
from .mvtcae import MVTCAE
from .nexus import Nexus
from .telbo import TELBO

__all__ = ["ADAPTERS", "adapter_of"]

ADAPTERS: dict[str, type[Adapter]] = {
    "cmvae": CMVAE,
    "crmvae": CRMVAE,
    "cvae": CVAE,
    "dmvae": DMVAE,
    "dvcca": DVCCA,
    "gpoe": GPoE,
    "jmvae": JMVAE,
    "jnf": JNF,
    "maae": MAAE,
    "mcvae": MCVAE,
    "mhvae": MHVAE,
    "mmjsd": MMJSD,
    "mmvae": MMVAE,
    "mmvaeplus": MMVAEPlus,
    "mopoe": MoPoE,
    "mvae": MVAE,
    "mvtcae": MVTCAE,
    "nexus": Nexus,
    "mwae": MWAE,
    "telbo": TELBO,
}
"""Our name of a model, without punctuation -> its adapter."""


def adapter_of(case: Case) -> Adapter:
    """The adapter of an installed model."""
    name = installed_as(case.model)
    if name is None or plain(name) not in ADAPTERS:
        raise CaseError(f"{case.model} is installed as {name!r}, and no adapter knows it")
    return ADAPTERS[plain(name)](case)

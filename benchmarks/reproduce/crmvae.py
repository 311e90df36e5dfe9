"""CRMVAE against MoPoE: coherence of small pictures by the number of modalities that are visible.

The paper's pictures are Translated PolyMNIST, digits made smaller and moved, on which all models
are close to chance. Ours are as they are in PolyMNIST, so that levels say nothing about the
paper's, and which model is ahead has no verdict; that coherence rises with what is visible has.
"""

from __future__ import annotations

import attrs
from claim import Figure, Reproduction, Scale
from coherence import MOPOE, OURS, Setting, columns, compared, nats, percent

__all__ = ["REPRODUCTION"]

CRMVAE = Setting(model="crmvae", latent_dim=64, options={"beta": 0.1})
PAPER = {"1": "14.5", "2": "17.2", "3": "19.2", "4": "21"}


def run(scale: Scale) -> list[Figure]:
    """Train both with every seed, and compare."""
    crmvae, mopoe = columns(CRMVAE, scale), columns(MOPOE, scale)
    figures = []
    for name, found in (("CRMVAE", crmvae), ("MoPoE", mopoe)):
        for visible, published in PAPER.items():
            paper = f"{published} (translated)" if name == "CRMVAE" else "not at hand"
            what = f"{name}, coherence with {visible} visible, %"
            figures.append(Figure(what=what, paper=paper, ours=percent(found[visible])))
        what = f"{name}, rows out of the prior with one digit in all five, %"
        figures.append(Figure(what=what, paper="not at hand", ours=percent(found["all"])))
        what = f"{name}, log p of test rows, nats"
        figures.append(Figure(what=what, paper="not printed", ours=nats(found["log_p"])))
    for visible in PAPER:
        what = f"CRMVAE less MoPoE, coherence with {visible} visible, points"
        found = compared(what, "above (translated)", crmvae[visible], mopoe[visible])
        figures.append(attrs.evolve(found, holds=None))
    for more in "234":
        less = str(int(more) - 1)
        figures.append(
            compared(
                f"CRMVAE, coherence with {more} visible less that with {less}, points",
                f"{float(PAPER[more]) - float(PAPER[less]):+.1f} (translated)",
                crmvae[more],
                crmvae[less],
            )
        )
    return figures


REPRODUCTION = Reproduction(
    name="crmvae",
    reference="Suzuki & Matsuo 2023, Translated PolyMNIST",
    paper_setting="Translated PolyMNIST, 5 modalities of 3 x 28 x 28, digits scaled by 0.75 and"
    " moved; MultiVae's reproduction: 512 latents, beta 0.1, Laplace likelihood of scale 0.75, 500"
    " epochs",
    our_setting=f"{OURS}; not translated; 64 latents; 60 epochs; CRMVAE beta 0.1, MoPoE 2.5",
    run=run,
)

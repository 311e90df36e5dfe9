"""Published results at a scale of minutes: what the paper has, what we find, and what it means.

A verdict stands only where the claim can be tested at our scale, and where what was found is more
than two standard errors away from nothing. Everything is drawn from fixed
seeds; figures differ between machines by rounding alone. Each reproduction runs on one thread in
less than 20 minutes and leaves its figures as JSON in runs/reproduce, with pictures where there
are any; `--table` prints what is there without running anything.

``nox -s reproduce``, in parts ``nox -s reproduce -- --only jmvae mcvae``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import attrs
import torch
from claim import Figure, Reproduction, Scale

from multivae_core.persistence import read_json, write_json

__all__ = ["main"]

FOLDER = Path(__file__).parents[2] / "runs" / "reproduce"


def reproductions() -> dict[str, Reproduction]:
    """All of them, by name, in the order of the table."""
    import cmvae
    import crmvae
    import jmvae
    import jnf
    import mcvae
    import mhvae
    import mmvae_plus

    modules = (jmvae, jnf, mcvae, mmvae_plus, cmvae, crmvae, mhvae)
    found = [module.REPRODUCTION for module in modules]
    return {each.name: each for each in found}


def main() -> None:
    """Run those that are asked for, and print the table of those that are there."""
    known = reproductions()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=known, default=list(known))
    parser.add_argument("--smoke", action="store_true", help="seconds; figures mean nothing")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [known[name] for name in asked.only]
    if not asked.table:
        asked.folder.mkdir(parents=True, exist_ok=True)
        for each in chosen:
            perform(each, Scale(smoke=asked.smoke, folder=asked.folder))
    for each in chosen:
        if (path := asked.folder / f"{each.name}.json").exists():
            print(render(each, read_json(path)), flush=True)


def perform(each: Reproduction, scale: Scale) -> None:
    """Run one, and keep what it found."""
    print(f"{each.name} ...", flush=True)
    began, cpu = time.monotonic(), time.process_time()
    figures = each.run(scale)
    write_json(
        scale.folder / f"{each.name}.json",
        {
            "figures": [attrs.asdict(figure) for figure in figures],
            "smoke": scale.smoke,
            "minutes": round((time.monotonic() - began) / 60, 1),
            "cpu_minutes": round((time.process_time() - cpu) / 60, 1),
        },
    )


def render(each: Reproduction, kept: dict) -> str:
    """One reproduction as a table in Markdown."""
    verdicts = {None: "", True: "holds", False: "DOES NOT HOLD"}
    if kept["smoke"]:
        verdicts = dict.fromkeys(verdicts, "-")
    lines = [
        f"\n## {each.name}: {each.reference}",
        f"paper: {each.paper_setting}",
        f"ours: {each.our_setting} ({kept['cpu_minutes']} minutes of CPU)",
        "",
        "| measured | paper | ours | verdict |",
        "| --- | --- | --- | --- |",
    ]
    if kept["smoke"]:
        lines.insert(3, "A SMOKE TEST: THE FIGURES MEAN NOTHING")
    for entry in kept["figures"]:
        figure = Figure(**entry)
        cells = figure.what, figure.paper, figure.ours, verdicts[figure.holds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

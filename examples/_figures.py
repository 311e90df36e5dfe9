"""The pictures of the demo: training, embedding, imputed digits, calibration and the probe."""

from __future__ import annotations

__all__ = ["draw"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

import multivae_core as mv

Numbers = Mapping[str, Any]
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
# Okabe and Ito 2008 for the views, Tol's "muted" for the digits: both safe for the colour-blind
VIEWS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DIGITS = (
    "#332288", "#CC6677", "#117733", "#882255", "#88CCEE",
    "#999933", "#AA4499", "#44AA99", "#B8860B", "#555555",
)  # fmt: skip
PICTURE = (16, 15)  # what a row of the view pix is
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.dpi": 130,
    "font.size": 9.5,
    "legend.frameon": False,
}


def draw(
    folder: Path,
    model: mv.MultimodalVAE,
    history: Any,
    metrics: Numbers,
    test: mv.IncompleteDataset,
) -> None:
    """Write all pictures to a folder, as PNG.

    Args:
        folder: Where to.
        model: The trained model.
        history: What `Trainer.fit` returned.
        metrics: The numbers of the demo.
        test: The labelled test data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figures = {
            "training": training(history),
            "embedding": embedding(model, test, ("mor", "zer")),
            "imputed_digits": imputed_digits(model, test),
            "calibration": calibration(metrics["coverage"]),
            "probe": probe(metrics["probe"]),
        }
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")


def training(history: Any) -> Figure:
    """The losses per epoch, with the epoch whose weights were kept."""
    figure, (left, right) = _figure(8.4, 3.4, 1, 2)
    epochs = np.arange(1, len(history) + 1)
    best = history.best.epoch
    named = (
        (left, "loss", GREY, "Training rows, a part of the views missing"),
        (right, "validation/loss", BLUE, "Validation rows, complete"),
    )
    for axes, key, colour, title in named:
        values = np.array(history[key])
        axes.plot(epochs, values, color=colour, lw=1.6)
        low, high = values.min(), values[min(4, len(values) - 1)]
        axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 1e-9)
        axes.axvline(best, color=ORANGE, lw=1, ls="--")
        axes.set(title=title, xlabel="epoch", ylabel="loss in nats per row")
    lowest = history["validation/loss"][best - 1]
    right.plot(best, lowest, "o", color=ORANGE, ms=6)
    right.annotate(
        f"kept: epoch {best}, {lowest:.0f} nats", (best, lowest), (-6, 60), color=ORANGE,
        textcoords="offset points", ha="right",
    )  # fmt: skip
    figure.suptitle("Training: the loss is a bound on -log p; lower is better", x=0.01, ha="left")
    return figure


def embedding(model: mv.MultimodalVAE, test: mv.IncompleteDataset, few: tuple[str, ...]) -> Figure:
    """Embeddings of the test rows from all views and from a few, in one t-SNE map."""
    few = tuple(name for name in few if name in test.names) or test.names[:1]
    both = [model.embed(test).numpy(), model.embed(test.restrict(few)).numpy()]
    perplexity = min(30.0, (len(test) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(np.vstack(both))
    labels = test.labels.numpy()
    figure, panels = _figure(9.6, 4.6, 1, 2, sharex=True, sharey=True)
    titles = ("All views visible", f"Only {' and '.join(few)} visible")
    for axes, xy, title in zip(panels, np.split(flat, 2), titles, strict=True):
        for digit in np.unique(labels):
            x, y = xy[labels == digit].T
            colour = DIGITS[digit % len(DIGITS)]
            axes.scatter(x, y, s=34, marker=f"${digit}$", color=colour, lw=0.2, label=str(digit))
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    handles, names = panels[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", title="digit")
    figure.suptitle(f"Embeddings of {len(test)} test digits (t-SNE map)", x=0.01, ha="left")
    return figure


def imputed_digits(model: mv.MultimodalVAE, test: mv.IncompleteDataset) -> Figure:
    """Pictures that were hidden, filled in from few and from many other views."""
    labels = test.labels.numpy()
    rows = test.subset([int(np.flatnonzero(labels == digit)[0]) for digit in np.unique(labels)])
    few, many = ("fou", "mor", "zer"), tuple(name for name in test.names if name != "pix")
    strips = [("truth", rows.batch().values["pix"], False)]
    for given in (few, many):
        source = ", ".join(given) if given == few else f"all {len(given)} others"
        drawn = model.decode(model.encode(rows.restrict(given), n_samples=200))["pix"]
        strips += [(f"from {source}:\nmean", drawn.mean.mean(0), False)]
        strips += [("spread of\n200 pictures", drawn.mean.std(0), True)]
    noise = float(drawn.variance.mean().sqrt())
    figure, grid = _figure(9.6, 5.6, len(strips), len(rows))
    widest = max(float(values.max()) for _, values, spread in strips if spread)
    for line, (label, values, spread) in zip(grid, strips, strict=True):
        for axes, value in zip(line, values, strict=True):
            top, colours = (widest, "viridis") if spread else (6, "gray_r")
            image = axes.imshow(value.numpy().reshape(PICTURE), vmin=0, vmax=top, cmap=colours)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)
        figure.colorbar(image, ax=line, pad=0.01, aspect=6)
    figure.suptitle(
        "Hidden pictures (view pix, ink per pixel from 0 to 6) and what the model makes of them."
        "\nSpread: standard deviation of the expected picture; noise of a single pixel, "
        f"{noise:.1f}, comes on top.", x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    return figure


def calibration(coverage: Numbers) -> Figure:
    """Actual minus nominal coverage of central intervals, per view and by visible views."""
    figure, panels = _figure(9.6, 4.0, 1, 2, sharey=True)
    levels = np.array(coverage["levels"])
    several = coverage["by_visible"]
    ramp = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(several)))
    curves = (
        ("Per view, three tenths of the views hidden", coverage["views"], VIEWS, "view"),
        ("All views, by number of visible ones", several, ramp, "visible"),
    )
    for axes, (title, rows, colours, key) in zip(panels, curves, strict=True):
        axes.axhline(0, color="k", lw=0.8)
        axes.vlines(0.9, -0.03, 0.03, color=GREY, lw=7, alpha=0.35)
        for (name, row), colour in zip(rows.items(), colours, strict=False):
            axes.plot(levels, np.array(row["actual"]) - levels, color=colour, lw=1.5, label=name)
        axes.set(title=title, xlabel="nominal coverage of the interval")
        handles = axes.get_legend_handles_labels()
        axes.legend(*handles, title=key, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    total, error = (np.array(coverage["all"][key]) for key in ("actual", "standard_error"))
    panels[0].plot(levels, total - levels, color="k", lw=2.6, label="all")
    panels[0].fill_between(
        levels, total - levels - error, total - levels + error, color="k", alpha=0.15, lw=0
    )
    panels[0].legend(title="view", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    panels[0].set_ylabel("actual minus nominal share")
    figure.suptitle(
        "Calibration: how much more (+) or less (-) often than promised the intervals hold the"
        " truth.\nGrey: where 90 % intervals should be. Band: standard error.",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    return figure


def probe(table: Numbers) -> Figure:
    """Accuracy of the linear probe over the number of visible views."""
    figure, axes = _figure(5.6, 3.8, 1, 1)
    visible = [int(k) for k in table]
    lines = (("model", BLUE, "o", "MoPoE embedding"), ("pca", ORANGE, "s", "PCA, mean-filled"))
    for key, colour, marker, label in lines:
        values = np.array([row[key] for row in table.values()])
        errors = np.array([row[f"{key}_error"] for row in table.values()])
        axes.errorbar(visible, values, 2 * errors, color=colour, marker=marker, capsize=3,
                      label=label)  # fmt: skip
    axes.set(xlabel="visible views", ylabel="accuracy on test digits", xticks=visible)
    axes.set_title("Linear probe: mean over all choices of the visible views, +- 2 SE")
    axes.legend(loc="lower right")
    axes.grid(axis="y", alpha=0.25)
    return figure


def _figure(width: float, height: float, rows: int, columns: int, **options: Any) -> Any:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)

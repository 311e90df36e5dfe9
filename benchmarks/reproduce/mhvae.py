"""MHVAE: the picture that is missing, out of those that are there.

Nothing says how the views of `views` are obtained from each other; training rows lack a part of
them. Ours is compared with regressions for every pixel, on all pixels of the sources and on those
around its place, and with a single level of latents, which is MoPoE's posterior over maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import attrs
import torch
import views
from claim import Figure, Reproduction, Scale, above_zero, standard_error
from ridge import features, ridge
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure

import multivae_core as mv

__all__ = ["REPRODUCTION"]

MISSING = 0.3
LIKELIHOOD = {"type": "normal", "scale": 0.1}
PATCH = 4
WIDTH = 32
LATENT = 4
NETWORK = {"channels": [WIDTH, 64], "latent_channels": [LATENT, 16], "latent_dim": 32}
FLAT = {"channels": [WIDTH], "latent_dim": LATENT, "n_levels": 1, "top": "map"}
BATCH = 32
TRAINING: dict[str, Any] = {
    "batch_size": BATCH,
    "lr": 4e-3,
    "schedule": "cosine",
    "clip_norm": 100.0,
}
TEMPERATURE = 0.7
EPOCHS = 40
AROUND = 7
CHUNK = 112
_SHOWN = 8

Direction = tuple[str, tuple[str, ...]]
"""A target and its sources."""

DIRECTIONS: tuple[Direction, ...] = tuple(
    (target, sources)
    for target in views.NAMES
    for count in (1, 2)
    for sources in combinations([name for name in views.NAMES if name != target], count)
)
Pictures = dict[Direction, Tensor]


@attrs.frozen(kw_only=True, eq=False)
class Setting:
    """Data and effort of one run.

    Args:
        train: Rows with holes.
        test: Complete rows.
        epochs: Passes over the training rows, for three levels and for one; the weight of the
            divergences rises over all of them, as the authors have it.
        n_samples: Samples of the latents per row.
        n_generated: Rows out of the prior.
        n_looked_at: Test rows for reconstruction, bound and spread.
    """

    train: mv.IncompleteDataset
    test: mv.IncompleteDataset
    epochs: int
    n_samples: int
    n_generated: int
    n_looked_at: int

    @classmethod
    def of(cls, scale: Scale) -> Setting:
        """Everything that depends on the scale."""
        complete = views.load("train", scale.pick(4000, 40))
        return cls(
            train=complete.hide(MISSING, seed=0, keep_one=True),
            test=views.load("test", scale.pick(500, 8)),
            epochs=scale.pick(EPOCHS, 1),
            n_samples=scale.pick(10, 2),
            n_generated=scale.pick(200, 8),
            n_looked_at=scale.pick(200, 4),
        )


def run(scale: Scale) -> list[Figure]:
    """Train both, fit the regressions, and compare what they make of the same test rows."""
    setting = Setting.of(scale)
    truth = setting.test.batch().values
    deep, flat = trained(setting, NETWORK, "L=3"), trained(setting, FLAT, "L=1")
    made = {
        "MHVAE": synthesised(deep, setting, setting.n_samples),
        "one sample": synthesised(cooled(deep, setting), setting, 1),
        "L=1": synthesised(flat, setting, setting.n_samples),
        f"{AROUND}x{AROUND}": regressed(setting, AROUND),
        "all pixels": regressed(setting, None),
    }
    print("regressions fitted", flush=True)
    draw(deep, flat, made, setting, scale)
    return [
        *[synthesis(direction, made, truth) for direction in DIRECTIONS],
        hierarchy(made, truth),
        *bounds(deep, flat, setting),
        *generations(deep, flat, setting),
        variation(deep, setting),
    ]


def created(
    setting: Setting, options: Mapping[str, Any], encode_temperature: float = 1.0
) -> mv.MultimodalVAE:
    """An MHVAE over maps; pixels have one small scale, for that of 1 would drown them in noise."""
    pixels = {"likelihood": LIKELIHOOD, "standardise": False}
    torch.manual_seed(0)  # of the networks that are made here
    return mv.create_model(
        "mhvae",
        setting.train,
        network="conv2d",
        first_stride=PATCH,
        subsets="random",
        beta_schedule=setting.epochs * len(setting.train) // BATCH,
        clamp=10.0,
        free_bits=10.0,
        temperature=TEMPERATURE,
        encode_temperature=encode_temperature,
        modalities=dict.fromkeys(views.NAMES, pixels),
        encoders={name: encoder() for name in views.NAMES},
        decoders={name: decoder() for name in views.NAMES},
        **options,
    )


def encoder() -> nn.Module:
    """A picture -> the first features, on a grid of its patches."""
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, PATCH, stride=PATCH),
        nn.SiLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.SiLU(),
    )


def decoder() -> nn.Module:
    """The finest latents -> a picture, patch by patch."""
    return nn.Sequential(
        nn.Conv2d(LATENT, WIDTH, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(WIDTH, PATCH**2, 3, padding=1),
        nn.PixelShuffle(PATCH),
    )


def trained(setting: Setting, options: Mapping[str, Any], what: str) -> mv.MultimodalVAE:
    """The same, trained."""
    model = created(setting, options)
    trainer = mv.Trainer(epochs=setting.epochs, progress=False, **TRAINING)
    numbers = trainer.fit(model, setting.train).epochs[-1].numbers
    print(f"{what}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()), flush=True)
    return model


def cooled(model: mv.MultimodalVAE, setting: Setting) -> mv.MultimodalVAE:
    """The three levels with samples of the posterior at a lower temperature."""
    cold = created(setting, NETWORK, TEMPERATURE)
    cold.load_state_dict(model.state_dict())
    return cold


def synthesised(model: mv.MultimodalVAE, setting: Setting, n_samples: int) -> Pictures:
    """Every view from every subset of the others, the mean over samples of the latents."""
    found: Pictures = {}
    for sources in sorted({sources for _, sources in DIRECTIONS}):
        targets = tuple(name for name in views.NAMES if name not in sources)
        seen = setting.test.restrict(sources)
        made = model.predict(seen, targets=targets, n_samples=n_samples)
        found |= {(target, sources): made[target].clamp(0, 1) for target in targets}
    return found


def regressed(setting: Setting, around: int | None) -> Pictures:
    """The same by a ridge regression for every pixel of the target.

    Args:
        setting: Rows that have a target and all of its sources are those that are fitted.
        around: Side of the square of the sources that a pixel is regressed on; None: all of them.
    """
    train, test = setting.train.batch(), setting.test.batch()
    found: Pictures = {}
    for target, sources in DIRECTIONS:
        wanted = [train.names.index(name) for name in (target, *sources)]
        rows = train.present[:, wanted].all(dim=1)
        x = features([train.values[name][rows] for name in sources], around)
        new = features([test.values[name] for name in sources], around)
        y = train.values[target][rows].flatten(1)
        y = y[None] if around is None else y.T[:, :, None]  # (P, N, T), P regressions at once
        parts = [
            ridge(x(part), y[part], new(part))
            for part in (slice(start, start + CHUNK) for start in range(0, len(y), CHUNK))
        ]
        made = torch.cat(parts)[0] if around is None else torch.cat(parts)[:, :, 0].T
        found[target, sources] = made.reshape_as(test.values[target]).clamp(0, 1)
    return found


def similarity(made: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, ``(N,)``."""
    found: Any = structural_similarity_index_measure(made, truth, data_range=1.0, reduction="none")
    return found


def signal_to_noise(made: Tensor, truth: Tensor) -> Tensor:
    """Peak signal to noise in decibels, ``(N,)``."""
    return -10.0 * (made - truth).square().flatten(1).mean(dim=1).clamp_min(1e-10).log10()


def shown(values: Tensor, digits: int = 3) -> str:
    """Mean and standard error."""
    error = standard_error(values.tolist())
    return f"{float(values.mean()):.{digits}f} ({error:.{digits}f})"


def synthesis(
    direction: Direction, made: Mapping[str, Pictures], truth: Mapping[str, Tensor]
) -> Figure:
    """One target from one subset; the better regression is the rival."""
    target, sources = direction
    ssim = {name: similarity(each[direction], truth[target]) for name, each in made.items()}
    parts = [
        f"{name} {shown(ssim[name])} / {shown(signal_to_noise(each[direction], truth[target]), 1)}"
        for name, each in made.items()
    ]
    rival = max(list(made)[-2:], key=lambda name: float(ssim[name].mean()))
    affine = target == views.LINEAR[0] and views.LINEAR[1] in sources
    note = ", affine by construction" if affine else ""
    return Figure(
        what=f"{target} from {' and '.join(sources)}: SSIM / PSNR in dB{note}",
        paper="not printed",
        ours="; ".join(parts),
        holds=None if affine else above_zero((ssim["MHVAE"] - ssim[rival]).tolist()),
    )


def hierarchy(made: Mapping[str, Pictures], truth: Mapping[str, Tensor]) -> Figure:
    """Three levels against one, over all directions."""
    gain = torch.stack(
        [
            similarity(made["MHVAE"][way], truth[way[0]])
            - similarity(made["L=1"][way], truth[way[0]])
            for way in DIRECTIONS
        ]
    ).mean(dim=0)
    return Figure(
        what="SSIM of L=3 less that of L=1, mean of the nine",
        paper="not printed",
        ours=shown(gain, 4),
        holds=above_zero(gain.tolist()),
    )


def bounds(deep: mv.MultimodalVAE, flat: mv.MultimodalVAE, setting: Setting) -> list[Figure]:
    """Reconstruction from all views, and the bound."""
    test = setting.test.subset(slice(0, setting.n_looked_at))
    truth = test.batch().values
    models = {"L=3": deep, "L=1": flat}
    back = {name: model.predict(test, n_samples=1) for name, model in models.items()}
    ssim = [
        f"{name} "
        + ", ".join(
            f"{view} {shown(similarity(made[view].clamp(0, 1), truth[view]))}"
            for view in views.NAMES
        )
        for name, made in back.items()
    ]
    elbos = {name: model.elbo(test, n_samples=4).value for name, model in models.items()}
    return [
        Figure(what="SSIM of reconstructions from all", paper="not printed", ours="; ".join(ssim)),
        Figure(
            what="bound of log p(all three), nats per row",
            paper="not printed",
            ours=", ".join(f"{name} {shown(value, 0)}" for name, value in elbos.items()),
            holds=above_zero((elbos["L=3"] - elbos["L=1"]).tolist()),
        ),
    ]


def generations(deep: mv.MultimodalVAE, flat: mv.MultimodalVAE, setting: Setting) -> list[Figure]:
    """Rows out of the prior: whether their views belong together, and whether they are digits."""
    models = {"L=3": deep, "L=1": flat}
    rows = {name: model.generate(setting.n_generated) for name, model in models.items()}
    rows = {n: {v: x.clamp(0, 1) for v, x in made.items()} for n, made in rows.items()}
    fit = {
        name: 0.5
        * (
            similarity(made["edges"], views.edges(made["digit"]))
            + similarity(made["soft"], views.soft(made["digit"]))
        )
        for name, made in rows.items()
    }
    known = setting.train.batch()
    known_digits = known.values["digit"][known.present[:, known.names.index("digit")]].flatten(1)
    digits = {name: made["digit"] for name, made in rows.items()}
    digits["test digits"] = setting.test.batch().values["digit"]
    near = {
        name: torch.cdist(each.flatten(1), known_digits).amin(dim=1)
        for name, each in digits.items()
    }
    return [
        Figure(
            what="generated: SSIM of edges and soft with those of the generated digit",
            paper="not printed",
            ours=", ".join(f"{name} {shown(value)}" for name, value in fit.items()),
        ),
        Figure(
            what="generated: distance of a digit to the nearest of training",
            paper="not printed",
            ours=", ".join(f"{name} {shown(value, 2)}" for name, value in near.items()),
        ),
    ]


def variation(model: mv.MultimodalVAE, setting: Setting) -> Figure:
    """Whether samples of a missing view differ where their mean is wrong."""
    test = setting.test.subset(slice(0, setting.n_looked_at))
    truth = test.batch().values["digit"]
    cells = []
    for sources in (("edges",), ("soft",), ("edges", "soft")):
        seen = test.restrict(sources)
        draws = model.encode(seen, n_samples=setting.n_samples)
        made = model.decode(draws)["digit"].mean
        spread, mean = made.std(dim=0), made.mean(dim=0)
        pair = torch.stack([spread.flatten(), (mean - truth).abs().flatten()])
        cells.append(
            f"from {' and '.join(sources)} {float(spread.square().mean().sqrt()):.3f}"
            f" (correlation {float(torch.corrcoef(pair)[0, 1]):.2f})"
        )
    return Figure(
        what="spread of samples of a missing digit, and its correlation with the error",
        paper="not printed",
        ours=", ".join(cells),
    )


def draw(
    deep: mv.MultimodalVAE,
    flat: mv.MultimodalVAE,
    made: Mapping[str, Pictures],
    setting: Setting,
    scale: Scale,
) -> None:
    """Test rows, their views and what was made of them; below, rows out of the prior."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure as Canvas

    truth = setting.test.batch().values
    canvas = Canvas(figsize=(12, 15), layout="tight")
    places = canvas.subplots(3, 2)
    ways: tuple[Direction, ...] = (
        ("digit", ("soft",)),
        ("digit", ("edges",)),
        ("edges", ("soft",)),
        ("soft", ("edges",)),
    )
    for place, (target, sources) in zip(places.flat, ways, strict=False):
        columns = {f"{sources[0]}\n(seen)": truth[sources[0]], target: truth[target]}
        columns |= {name.replace(" ", "\n"): each[target, sources] for name, each in made.items()}
        mosaic(place, columns, f"{target} from {sources[0]}")
    for place, (name, model) in zip(places[2], (("L=3", deep), ("L=1", flat)), strict=True):
        mosaic(place, model.generate(_SHOWN, seed=1), f"{name}: generated")
    canvas.savefig(scale.folder / "mhvae.png", dpi=70)


def mosaic(place: Any, columns: Mapping[str, Tensor], title: str) -> None:
    """Pictures ``(N, 1, h, w)`` of every column below each other."""
    framed = [functional.pad(each[:_SHOWN, 0], [1] * 4, value=0.5) for each in columns.values()]
    stacks = [each.flatten(0, 1) for each in framed]
    width = stacks[0].shape[1]
    place.imshow(torch.cat(stacks, dim=1), cmap="gray", vmin=0, vmax=1)
    place.set_xticks([width * (i + 0.5) for i in range(len(stacks))], columns, fontsize=9)
    place.xaxis.tick_top()
    place.tick_params(length=0)
    place.set_yticks([])
    place.set_title(title)


REPRODUCTION = Reproduction(
    name="mhvae",
    reference="Dorent et al. 2023, synthesis of a missing image",
    paper_setting="ReMIND: ultrasound and T2 before surgery, slices; seven levels, smooth L1 and"
    " critics, Adamax 2e-3, 500 epochs; SSIM, PSNR and LPIPS of one out of the other, better"
    " than of GANs and of unified models",
    our_setting="MNIST 28x28, three views of 8 bits (digit, Sobel's steepness, blurred negative);"
    " 4,000 rows that lack 30 % of them, 500 test rows; three levels (4x7x7, 16x4x4, 32), patches"
    " of 4x4, normal scale 0.1, beta rising over all steps, 10 free nats a level, Adam 4e-3 to 0"
    f" by a cosine, gradients clipped, batch {BATCH}, {EPOCHS} epochs, chosen on training rows;"
    " L=1 has the finest level alone; ridges with the penalty that is best for a fifth of their"
    " rows",
    run=run,
)

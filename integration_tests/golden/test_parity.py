"""Our own rule on incomplete rows where it is not the golden's, on purpose.

The numbers are those of the golden's PARITY.md: mean over rows, our default rules, computed there
from the formulas by another program. Fixtures that are not in the folder are skipped.
"""

from __future__ import annotations

import pytest
import torch

import multivae_core as mv
from multivae_core.noise import ZeroNoise

from .adapter import installed_as
from .adapters import adapter_of
from .case import Case, Entry, golden_folder

pytestmark = pytest.mark.golden

ONCE, COUNT = {"duplicate_terms": "once"}, {"duplicate_terms": "count"}
LARGEST = {"prior_expert": "largest"}
AVAILABLE = {"normalise": "available"}
NON_EMPTY = {"subset_weights": "uniform"}
OURS = [
    ("mvae_subsampling_k0", "moderate", ONCE, 61.0228719006574),
    ("mvae_subsampling_k0", "moderate", COUNT, 66.5668373862354),
    ("mvae_subsampling_k0", "flat_decoders", ONCE, 55.4942975746587),
    ("mvae_sub_k3_rescaled_warmup", "moderate", ONCE, 125.4541723309767),
    ("mvae_sub_k3_rescaled_warmup", "moderate", COUNT, 179.9083338250664),
    ("mvae_sub_k3_rescaled_warmup", "flat_decoders", ONCE, 113.0584887352813),
    ("mopoe_all_subsets", "moderate", LARGEST, 27.3044110104269),
    ("mopoe_all_subsets", "flat_decoders", LARGEST, 21.7084777402748),
    ("mopoe_beta_rescaled", "moderate", LARGEST, 50.9541452460281),
    ("mopoe_beta_rescaled", "flat_decoders", LARGEST, 48.6812187017126),
    ("mopoe_private", "moderate", LARGEST, 45.4745682928239),
    ("mopoe_private", "flat_decoders", LARGEST, 39.7150736729689),
    ("mhvae_three_levels", "moderate", NON_EMPTY, 31.6225644131640),
    ("mhvae_two_levels_shared_posterior", "moderate", NON_EMPTY, 38.7511686814536),
    ("mvtcae_default", "moderate", AVAILABLE, 38.0920563468350),
    ("mvtcae_default", "flat_decoders", AVAILABLE, 36.3429136494113),
    ("mvtcae_alpha1", "moderate", AVAILABLE, 19.7285358643003),
    ("mvtcae_alpha1", "flat_decoders", AVAILABLE, 17.9060936806959),
    ("mvtcae_alpha09_beta1_rescaled", "moderate", AVAILABLE, 23.0212832338139),
    ("mvtcae_alpha09_beta1_rescaled", "flat_decoders", AVAILABLE, 21.7363775982206),
]


@pytest.mark.parametrize(("name", "variant", "options", "expected"), OURS)
def test_our_rule(name, variant, options, expected):
    case = Case(golden_folder() / "fixtures" / name)
    if not case.folder.is_dir():
        pytest.skip(f"no folder {case.folder}")
    if installed_as(case.model) is None:
        pytest.skip(f"{case.model} is not installed")
    adapter, batch = adapter_of(case), case.batch("incomplete")
    asked = {"quantity": "loss", "mode": "zero_noise", "variant": variant, "data": "incomplete"}
    built = adapter.build(Entry(0, asked), **options)
    with torch.no_grad():
        output = adapter.output(built, batch, ZeroNoise(torch.float64))
    assert float(adapter.objective(output, batch, 1)[0]) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("model", "option", "default"), [
    ("mvae", "duplicate_terms", "once"),
    ("mvae", "term_reduction", "sum"),
    ("mopoe", "prior_expert", "largest"),
    ("mvtcae", "normalise", "available"),
    ("mmjsd", "prior_component", "jsd_only"),
    ("gpoe", "likelihood_reduction", "sum"),
    ("maae", "divergence", "gan"),
    ("mwae", "divergence", "mmd"),
    ("mhvae", "subsets", "all"),
    ("mhvae", "subset_weights", "uniform"),
    ("mmvae", "estimator", "iwae"),
    ("mmvae", "bound", "looser"),
    ("mmvae_plus", "estimator", "iwae"),
    ("mmvae_plus", "bound", "looser"),
    ("mmvae_plus", "cross_private", "prior"),
    ("dmvae", "kl_count", "per_source"),
    ("dmvae", "prior_expert", "joint_only"),
    ("dmvae", "term_reduction", "sum"),
])  # fmt: skip
def test_those_are_our_defaults(model, option, default):
    if model not in mv.registry.models:
        pytest.skip(f"{model} is not installed")
    config = mv.registry.models.load_config(model)
    assert getattr(config(modalities={}), option) == default

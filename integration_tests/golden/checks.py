"""One check for every kind of expected entry; each raises AssertionError with both numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import multivae_core as mv
from multivae_core.noise import GeneratorNoise, NoiseSource, ZeroNoise

from .adapter import Adapter, Built
from .case import Case, CaseError, Entry

__all__ = ["check", "kind_of"]

DRAWS = 4000
"""Of a batch for every Monte-Carlo value, in `_CHUNKS` calls of a tiled batch."""

_CHUNKS = 8
_SEPARATE_DRAWS = 2000
_SAMPLES = 200_000
_MOST_SAMPLES = 800_000
_LARGEST_ERROR = 0.05  # nats per row: with more a check of a likelihood would say little
_INFORMATION = "peer_importance_sampling"


def kind_of(entry: Entry) -> str:
    """``check``; ``component``: optional; ``information``: no gate; ``unknown``."""
    if entry.quantity == "component":
        return "component"
    if entry.mode == _INFORMATION:
        return "information"
    known = entry.quantity in _CHECKS and entry.mode in _CHECKS[entry.quantity][1]
    return "check" if known else "unknown"


def check(adapter: Adapter, entry: Entry) -> bool:
    """Check one entry.

    Returns:
        False for an optional entry that our models have no number for.

    Raises:
        AssertionError: Our number is another one.
        CaseError: There is no way to compare.
    """
    if entry.quantity == "component":
        return _component(adapter, entry)
    if entry.quantity not in _CHECKS:
        raise CaseError(f"{adapter.case.name}: no check knows {entry.quantity!r}")
    function, modes = _CHECKS[entry.quantity]
    if entry.mode not in modes:
        raise CaseError(f"{adapter.case.name}: {entry.quantity} has the mode {entry.mode!r}")
    function(adapter, entry)
    return True


def _loss(adapter: Adapter, entry: Entry) -> None:
    adapter.own_arguments(entry)
    if entry.mode != "monte_carlo":
        built, batch = adapter.build(entry), adapter.case.batch(entry["data"])
        output = adapter.output(built, batch, _noise(entry, 0))
        _close(adapter, entry, adapter.losses(output, batch, 1)[0], entry["value"])
        return
    if adapter.draws_at_once():
        batch = adapter.case.batch(entry["data"], DRAWS // _CHUNKS)
        calls, each = _CHUNKS, DRAWS // _CHUNKS
    else:
        batch, calls, each = adapter.case.batch(entry["data"]), _SEPARATE_DRAWS, 1
    built = adapter.build(entry)
    with torch.no_grad():
        losses = [
            adapter.losses(adapter.output(built, batch, _noise(entry, seed)), batch, each)
            for seed in range(calls)
        ]
    _within(adapter, entry, torch.cat(losses))


def _gradient_norms(adapter: Adapter, entry: Entry) -> None:
    adapter.own_arguments(entry)
    built, batch = adapter.build(entry), adapter.case.batch(entry["data"])
    adapter.losses(adapter.output(built, batch, ZeroNoise(torch.float64)), batch, 1)[0].backward()
    differing = []
    # a tensor that is not named has no gradient at all in the peer
    silent = {name: 0.0 for name in adapter.case.tensors if name.startswith("net.")}
    for name, expected in (silent | entry["value"]).items():
        norm = float(built.networks.gradient(name).norm())
        if not abs(norm - expected) <= _tolerance(adapter, entry) * abs(expected) + 1e-12:
            differing.append(f"{name}: {norm!r}, golden {expected!r}")
    assert not differing, "norms of gradients differ: " + "; ".join(differing)


def _posterior(adapter: Adapter, entry: Entry) -> None:
    subset = entry.fields.get("subset", adapter.case.order)
    batch = adapter.case.batch(entry["data"]).restrict(subset)
    _same_normal(adapter, entry, batch)


def _posterior_available(adapter: Adapter, entry: Entry) -> None:
    _same_normal(adapter, entry, adapter.case.batch(entry["data"]))


def _same_normal(adapter: Adapter, entry: Entry, batch: mv.Batch) -> None:
    _only(entry["tensors"], {"mu", "logvar"})
    with torch.no_grad():
        ours = adapter.posterior(adapter.build(entry), batch)
    _close(adapter, entry, ours.mean, _tensor(adapter, entry["tensors"]["mu"]))
    _close(adapter, entry, ours.log_variance, _tensor(adapter, entry["tensors"]["logvar"]))


def _array(adapter: Adapter, entry: Entry) -> None:
    with torch.no_grad():
        ours = adapter.array(entry)
    golden = entry.fields.get("tensor")
    if golden is None:
        expected = torch.tensor(entry["value"], dtype=torch.float64)
    else:
        expected = _tensor(adapter, golden)
    _close(adapter, entry, ours, expected)


def _encode_mean(adapter: Adapter, entry: Entry) -> None:
    if "subset" not in entry.fields:
        _array(adapter, entry)
        return
    means = _means(adapter, entry, adapter.build(entry))
    _close(adapter, entry, means[adapter.encoded], _tensor(adapter, entry["tensor"]))


def _encode_mean_all_levels(adapter: Adapter, entry: Entry) -> None:
    """Levels of a hierarchy: the golden's z_1 is our z1."""
    means = _means(adapter, entry, adapter.build(entry))
    names = {name: f"z_{name.removeprefix('z')}" for name in means}
    _only(entry["tensors"], set(names.values()))
    for ours, theirs in names.items():
        _close(adapter, entry, means[ours], _tensor(adapter, entry["tensors"][theirs]))


def _encode_mean_private(adapter: Adapter, entry: Entry) -> None:
    means = _means(adapter, entry, adapter.build(entry))
    _only(entry["tensors"], {latent[1] for latent in means if latent != "shared"})
    for name, tensor in entry["tensors"].items():
        _close(adapter, entry, means["private", name], _tensor(adapter, tensor))


def _reconstruction(adapter: Adapter, entry: Entry) -> None:
    """What the decoders' networks give, and the means of the likelihoods made of it."""
    if "subset" not in entry.fields:
        _array(adapter, entry)
        return
    built = adapter.build(entry)
    raw: dict[str, Tensor] = {}
    for name in adapter.case.order:
        network: Any = built.model.decoders[name]
        network.network.register_forward_hook(
            lambda _, __, output, name=name: raw.__setitem__(name, output)
        )
    likelihoods = built.model.decode(_means(adapter, entry, built))
    _only(entry["tensors"], set(adapter.case.order))
    for name, tensor in entry["tensors"].items():
        expected = _tensor(adapter, tensor)
        _close(adapter, entry, raw[name], expected)
        kind = adapter.case.modalities()[name]["likelihood"]["type"]
        _close(adapter, entry, likelihoods[name].mean[0], _MEANS[kind](expected))


def _joint_nll(adapter: Adapter, entry: Entry) -> None:
    batch, model = adapter.case.batch(entry["data"]), _widened(adapter, entry)
    _same_likelihood(adapter, entry, lambda n: model.log_likelihood(batch, n, latent_rows=n))


def _conditional_nll(adapter: Adapter, entry: Entry) -> None:
    batch, model = adapter.case.batch(entry["data"]), _widened(adapter, entry)
    given, targets = adapter.conditional(entry)
    _same_likelihood(
        adapter,
        entry,
        lambda n: model.conditional_log_likelihood(batch, given, targets, n, latent_rows=n),
    )


def _widened(adapter: Adapter, entry: Entry) -> mv.MultimodalVAE:
    """Our model with encoders that say almost nothing.

    A likelihood depends on decoders and prior alone. The golden's untrained encoders make
    importance weights of infinite variance: 1 sample of 100,000 decides, and the standard error
    of such an estimate is worth nothing. Wide encoders make it exact to about 0.01 nats.
    """
    built = adapter.build(entry)
    adapter.widen(built)
    return built.model


def _same_likelihood(adapter: Adapter, entry: Entry, estimate: Callable[[int], Any]) -> None:
    """Within 4 standard errors in every row, and these are small."""
    expected, bound = -_tensor(adapter, entry["tensor"]), float(entry["per_datum_error_bound"])
    samples = _SAMPLES
    ours = estimate(samples)
    while float(ours.standard_error.max()) > _LARGEST_ERROR and samples < _MOST_SAMPLES:
        samples *= 2
        ours = estimate(samples)
    assert float(ours.standard_error.max()) <= _LARGEST_ERROR, (
        f"standard errors of up to {ours.standard_error.max():.3f} nats, with {samples} samples"
    )
    off = (ours.value - expected).abs() - bound - 4.0 * ours.standard_error
    assert float(off.max()) <= 0.0, (
        f"log-likelihoods {ours.value.tolist()} with errors {ours.standard_error.tolist()},"
        f" golden {expected.tolist()} within {bound}"
    )


def _component(adapter: Adapter, entry: Entry) -> bool:
    if entry.mode == "monte_carlo" and not adapter.draws_at_once():
        return False
    draws, calls = (DRAWS // _CHUNKS, _CHUNKS) if entry.mode == "monte_carlo" else (1, 1)
    with torch.no_grad():
        parts = [adapter.component(entry, _noise(entry, seed), draws) for seed in range(calls)]
    ours = [part for part in parts if part is not None]
    if not ours:
        return False
    if entry.mode == "monte_carlo":
        _within(adapter, entry, torch.cat(ours))
    else:
        _close(adapter, entry, ours[0][0], entry["value"])
    return True


def _means(adapter: Adapter, entry: Entry, built: Built) -> dict[Any, Tensor]:
    return built.model.encode(adapter.case.batch(entry["data"]).restrict(entry["subset"]))


def _noise(entry: Entry, seed: int) -> NoiseSource:
    """Zeros where the golden had zeros, true noise elsewhere."""
    if entry.mode == "zero_noise":
        return ZeroNoise(torch.float64)
    generator = torch.Generator().manual_seed(1000 * entry.number + seed)
    return GeneratorNoise(generator, torch.float64)


def _tolerance(adapter: Adapter, entry: Entry) -> float:
    """Relative tolerance, as the golden's own text has it."""
    least = adapter.array_tolerance[entry["data"]]
    if entry.mode == "deterministic":
        flat = "flat" in adapter.case.content["variants"][entry["variant"]]
        return max(1e-9 if flat else 1e-5, least if least > 1e-8 else 0.0)
    return least


def _close(adapter: Adapter, entry: Entry, ours: Tensor, golden: Tensor | float) -> None:
    expected = torch.as_tensor(golden, dtype=torch.float64)
    assert ours.shape == expected.shape, f"shape {tuple(ours.shape)}, golden {expected.shape}"
    size = float(expected.abs().max())
    off = float((ours.detach() - expected).abs().max())
    limit = _tolerance(adapter, entry) * size
    assert off <= max(limit, 1e-14), (
        f"{entry.label}: off by {off:.3e} of {size:.6g}, allowed {limit:.1e};"
        f" ours {ours.detach().flatten()[:4].tolist()}, golden {expected.flatten()[:4].tolist()}"
    )


def _within(adapter: Adapter, entry: Entry, draws: Tensor) -> None:
    """Within 4 standard errors: one good number in 16,000 fails, the same ones every time."""
    golden, golden_error = float(entry["value"]), float(entry["se"])
    ours = float(draws.mean())
    own_error = float(draws.std()) / math.sqrt(len(draws)) if len(draws) > 1 else 0.0
    # parts without noise differ by rounding alone
    rounding = _tolerance(adapter, entry) * abs(golden)
    limit = 4.0 * math.hypot(golden_error, own_error) + rounding
    assert abs(ours - golden) <= limit, (
        f"{entry.label}: {ours:.6f} +- {own_error:.6f}, golden {golden:.6f} +-"
        f" {golden_error:.6f}: {abs(ours - golden):.2e} apart, allowed {limit:.2e}"
    )


def _only(tensors: Mapping[str, str], names: set[Any]) -> None:
    if set(tensors) != names:
        raise CaseError(f"expected arrays for {sorted(tensors)}, ours are {sorted(names)}")


def _tensor(adapter: Adapter, name: str) -> Tensor:
    case: Case = adapter.case
    return case.tensors[name]


_MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda raw: raw,
    "laplace": lambda raw: raw,
    "bernoulli": torch.sigmoid,
    "categorical": lambda raw: raw.softmax(dim=-1),
}

_NO_MODE = (None,)
_CHECKS: dict[str, tuple[Callable[[Adapter, Entry], None], tuple[str | None, ...]]] = {
    "loss": (_loss, ("zero_noise", "deterministic", "monte_carlo")),
    "gradient_norms": (_gradient_norms, ("zero_noise",)),
    "posterior": (_posterior, _NO_MODE),
    "posterior_available": (_posterior_available, _NO_MODE),
    "jsd_terms": (_array, ("exact",)),
    "reconstruction_by_component": (_array, ("zero_noise",)),
    "reconstruction_loss": (_array, ("deterministic",)),
    "discriminator_loss": (_array, ("deterministic",)),
    "generator_loss": (_array, ("deterministic",)),
    "encode_mean": (_encode_mean, _NO_MODE),
    "encode_mean_all_levels": (_encode_mean_all_levels, _NO_MODE),
    "encode_mean_private": (_encode_mean_private, _NO_MODE),
    "reconstruction": (_reconstruction, _NO_MODE),
    "prior_mean": (_array, _NO_MODE),
    "reconstruction_from_prior_mean": (_array, _NO_MODE),
    "joint_nll": (_joint_nll, ("exact_quadrature",)),
    "conditional_nll": (_conditional_nll, ("exact_quadrature",)),
}

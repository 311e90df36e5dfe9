"""`create_model`, with defaults taken from the data, and `load_dataset`: both by name."""

from __future__ import annotations

import difflib
import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multivae_core._registry import registry
from multivae_core.building import seeded
from multivae_core.config import build, structure
from multivae_core.data import IncompleteDataset
from multivae_core.errors import ConfigError, DataError
from multivae_core.likelihoods import Categorical, LikelihoodHead
from multivae_core.model_config import ModalityConfig
from multivae_core.networks import default_network

if TYPE_CHECKING:
    from multivae_core.model import MultimodalVAE

__all__ = ["create_model", "load_dataset"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_OVERRIDES = ("likelihood", "encoder", "decoder", "standardise", "element_mask", "weight")
_CHUNK = 1 << 22  # elements of all modalities that are looked at in one go
_PATTERNS = 10  # most frequent patterns of missing modalities that the model card shows


def create_model(
    name: str,
    data: IncompleteDataset,
    *,
    modalities: Mapping[str, Mapping[str, Any]] | None = None,
    encoders: Mapping[str, nn.Module] | None = None,
    decoders: Mapping[str, nn.Module] | None = None,
    networks: Mapping[str, nn.Module] | None = None,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> MultimodalVAE:
    """Create a model that fits the data; nothing is trained yet.

    What is not said is taken from the data: the shapes; the likelihood (normal with a learned
    scale per feature for floats, Bernoulli for bool; integers have none, for they may be counts,
    codes or measurements); the networks, by shape; standardisation, for every real-valued
    likelihood; whether encoders are told which elements were observed, if elements are missing.

    Args:
        name: Name of a registered model, for example ``"mopoe"``.
        data: The training data. They are looked through once, to check that they fit and to
            find the scale of real-valued modalities.
        modalities: Modality -> what is to differ from the defaults: ``likelihood``,
            ``encoder``, ``decoder`` (a name, or a mapping with ``type`` and options),
            ``standardise``, ``element_mask``, ``weight``.
        encoders: Modality -> a network of one's own, ``(R, *shape)`` -> ``(R, F)``.
        decoders: Modality -> a network of one's own,
            ``(R, D)`` -> ``(R, P * shape[0], *shape[1:])`` for P parameters per element. Own
            networks become part of the model, which converts them to its type.
        networks: Role -> a network of one's own, for models that have more of them, such as
            ``joint_encoder``; what each maps to what is in the model's ``roles``.
        seed: Seed of the initial weights; random states outside are left as they are.
        dtype: ``"float32"`` or ``"float64"``; None: torch's default. Data of any other type
            are converted when the model sees them.
        options: Options of the model, for example ``latent_dim=16``.

    Raises:
        UnknownComponentError: No installed plugin has a model, likelihood, ... of that name.
        ConfigError: An option that is unknown or not allowed; the message has its path.
        DataError: Data that do not fit the likelihood, or a modality without a value.

    Example:
        >>> rows = numpy.random.default_rng(0).normal(size=(20, 3))  # doctest: +SKIP
        >>> data = mv.IncompleteDataset({"a": rows, "b": rows > 0})  # doctest: +SKIP
        >>> model = mv.create_model("mopoe", data, latent_dim=4)  # doctest: +SKIP
    """
    model_class, config_class = _model(name)
    _check_data(data)
    kind, seed = _dtype(dtype), _seed(seed)
    own = {"encoder": dict(encoders or {}), "decoder": dict(decoders or {})}
    given = _given({} if modalities is None else modalities, own, data)
    heads, parts = {}, {}
    for modality, stated in given.items():
        likelihood = stated.pop("likelihood", None) or _likelihood(modality, data.dtypes[modality])
        heads[modality] = head = _head(modality, likelihood, data.shapes[modality])
        network = default_network(head.shape, isinstance(head, Categorical))
        parts[modality] = {
            "shape": head.shape,
            "standardise": head.real_valued,
            "element_mask": modality in data.observed,
            **{role: None if modality in part else network for role, part in own.items()},
            **stated,
            "likelihood": likelihood,
        }
    config = structure(config_class, {**options, "modalities": parts})
    _check_scale(config, heads)
    _check_values(data, heads, kind)
    further = {"networks": _modules(networks)} if networks else {}
    with seeded(kind, seed):
        model = model_class(config, encoders=own["encoder"], decoders=own["decoder"], **further)
    model.to(kind)
    for modality in model.modalities:
        if config.modalities[modality].standardise:
            moments, count = data.moments(modality), _count(data, modality)
            model.transforms[modality].fit(*moments, count, data.dtypes[modality])
    summary = data.summary().as_dict()
    model.notes["data"] = {**summary, "patterns": summary["patterns"][:_PATTERNS]}
    return model


def load_dataset(name: str, **options: Any) -> IncompleteDataset:
    """Load a registered data set, for example ``load_dataset("mfeat")``.

    Args:
        name: Its name; ``multivae_core.registry.datasets.names()`` lists what is installed.
        options: Options of the data set.

    Raises:
        UnknownComponentError: No installed plugin has it.
        ConfigError: An option that the data set does not have.
    """
    load: Callable[..., IncompleteDataset] = registry.datasets.load(name)
    config_class = registry.datasets.load_config(name)
    if config_class is not None:
        return load(structure(config_class, options, f"datasets.{name}"))
    known = inspect.signature(load).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for option in options:
        if option not in known and not takes_any:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"unknown option; there is {listed}", f"datasets.{name}.{option}")
    return load(**options)


def _model(name: str) -> tuple[type[MultimodalVAE], type[Any]]:
    spec = registry.models[name]
    config_class = registry.models.load_config(name)
    if config_class is None:
        raise ConfigError(
            f"model {spec.qualified_name!r} is registered without a configuration class, so that"
            " nothing is known about its options; register it with config="
        )
    model_class: type[MultimodalVAE] = registry.models.load(name)
    return model_class, config_class


def _check_data(data: object) -> None:
    if not isinstance(data, IncompleteDataset):
        raise DataError(
            f"create_model needs an IncompleteDataset, got a {type(data).__name__}; build one:"
            " mv.IncompleteDataset({'image': images, 'text': texts}), with arrays (N, *shape) and"
            " NaN where something is missing"
        )
    for name, rate in data.missing_rates().items():
        if rate == 1.0:
            raise DataError(
                f"modality {name!r} is missing in all of the {len(data)} rows, so that nothing can"
                " be learned about it; leave it out of the data set, or train on rows that have it"
            )


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    chosen = torch.get_default_dtype() if dtype is None else dtype
    known = _DTYPES.get(str(chosen).removeprefix("torch."))
    if known is None:
        raise ConfigError(
            f"must be 'float32' or 'float64', got {dtype!r}; for speed use the trainer's mixed"
            " precision instead of a shorter type",
            "dtype",
        )
    return known


def _seed(seed: object) -> int:
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= int(seed) < 2**63:  # type: ignore[call-overload]
        raise ConfigError(f"must be a whole number from 0 to 2**63 - 1, got {seed!r}", "seed")
    return int(seed)  # type: ignore[call-overload, no-any-return]


def _given(
    modalities: object, own: Mapping[str, Mapping[str, object]], data: IncompleteDataset
) -> dict[str, dict[str, Any]]:
    """Return what was said about every modality, after a check of names; None means nothing."""
    if not isinstance(modalities, Mapping):
        raise ConfigError(
            f"must map a modality to its options, such as {{{data.names[0]!r}: {{'likelihood':"
            f" 'normal'}}}}; got a {type(modalities).__name__}",
            "modalities",
        )
    for name, value in modalities.items():
        path = f"modalities.{name}"
        _known(name, data, path)
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"must be a mapping such as {{'likelihood': 'normal'}}, got {value!r}", path
            )
        for key in value:
            if key not in _OVERRIDES:
                why = "is taken from the data" if key == "shape" else "unknown option"
                raise ConfigError(f"{why}; there is {', '.join(_OVERRIDES)}", f"{path}.{key}")
    given = {
        name: {k: v for k, v in modalities.get(name, {}).items() if v is not None}
        for name in data.names
    }
    for role, networks in own.items():
        for name, network in networks.items():
            path = f"{role}s.{name}"
            _known(name, data, path)
            if not isinstance(network, nn.Module):
                raise ConfigError(
                    f"must be a torch.nn.Module (an object, not its class), got {network!r};"
                    f" networks by name go into modalities={{{name!r}: {{{role!r}: 'mlp'}}}}",
                    path,
                )
            if role in given[name]:
                raise ConfigError(
                    f"given twice: here and as modalities.{name}.{role}; leave one of them out",
                    path,
                )
    return given


def _modules(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    for role, network in networks.items():
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"must be a torch.nn.Module (an object, not its class), got {network!r}",
                f"networks.{role}",
            )
    return dict(networks)


def _known(name: object, data: IncompleteDataset, path: str) -> None:
    if name not in data.names:
        close = difflib.get_close_matches(str(name), data.names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "use one of these names"
        raise ConfigError(
            f"the data have no modality {name!r}, they have {', '.join(data.names)}; {hint}", path
        )


def _head(name: str, likelihood: Any, shape: tuple[int, ...]) -> LikelihoodHead:
    path = f"modalities.{name}"
    part = structure(ModalityConfig, {"shape": shape, "likelihood": likelihood}, path)
    try:
        head: LikelihoodHead = build("likelihoods", part.likelihood, shape)
    except ConfigError as error:
        raise error.under(f"{path}.likelihood") from error
    return head


def _likelihood(name: str, dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return "bernoulli"
    if dtype.is_floating_point:
        return {"type": "normal", "scale": "learned"}
    kind = str(dtype).removeprefix("torch.")
    raise DataError(
        f"modality {name!r} holds integers ({kind}), which may be counts, categories or"
        f" measurements: say which. Counts: modalities={{{name!r}: {{'likelihood': 'poisson'}}}}"
        " or 'negative_binomial'; categories: one-hot values and 'categorical'; 0 and 1:"
        " 'bernoulli'; measurements: pass the data as floats, x.astype(float)"
    )


def _check_scale(config: Any, heads: Mapping[str, LikelihoodHead]) -> None:
    for name, head in heads.items():
        if config.modalities[name].standardise and not head.real_valued:
            raise ConfigError(
                f"must be false for the likelihood {head.name!r}, whose values have no scale that"
                " could be changed; leave it out, or choose a real-valued likelihood such as"
                " 'normal'",
                f"modalities.{name}.standardise",
            )


def _check_values(
    data: IncompleteDataset, heads: Mapping[str, LikelihoodHead], dtype: torch.dtype
) -> None:
    """Look through the data once: do they fit the likelihoods and the model's type?"""
    size = sum(torch.Size(shape).numel() for shape in data.shapes.values())
    for batch in data.batches(max(1, _CHUNK // size)):
        for name, head in heads.items():
            rows, values, observed = batch.index, batch.values[name], batch.observed.get(name)
            have = batch.rows(name)
            if have is not None:
                rows, values = rows[have], values[have]
                observed = None if observed is None else observed[have]
            head.check(values, observed, name, rows)
            if values.dtype == torch.float64 and dtype != torch.float64 and values.numel():
                largest = float(values.abs().amax())
                if largest > torch.finfo(dtype).max:
                    raise DataError(
                        f"modality {name!r} has values up to {largest:.3g}, which float32 cannot"
                        " hold; change their unit, or create the model with dtype='float64'"
                    )


def _count(data: IncompleteDataset, name: str) -> Tensor:
    """Return how many entries of every element are observed, ``shape``."""
    if name in data.observed:
        return data.observed[name].sum(dim=0)
    rows = data.present[:, data.names.index(name)].sum()
    return rows.expand(data.shapes[name])

"""Which blocks, encoders and decoders a hierarchy has, by its configuration and its modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from multivae_core.config import build
from multivae_core.errors import ConfigError
from multivae_core.likelihoods import LikelihoodHead
from multivae_core.model_networks import no_network
from multivae_core.networks.heads import ModalityDecoder, PerModality, check_decoder
from multivae_hierarchical._blocks import Blocks
from multivae_hierarchical._hierarchy import Shared
from multivae_hierarchical._modules import Broadcast, Features, Pooled, Shape, check_network

if TYPE_CHECKING:
    from multivae_hierarchical._levelled import LevelledVAE, LevelsConfig

__all__ = ["ROLES", "blocks_of", "by_role", "decoder", "encoder"]

ROLES = {
    "bottom_up": "ModuleDict of modality -> ModuleList of F_l -> F_(l+1), l = 1 .. L-2",
    "top": "F_(L-1) -> Z_L twice; one module (share='all'), or a ModuleDict of modalities",
    "top_down": "ModuleList of Z_(l+1) -> F_l, l = 1 .. L-1",
    "prior": "ModuleList of F_l -> Z_l twice, l = 1 .. L-1",
    "posterior": "ModuleList of F_l twice -> Z_l twice, l = 1 .. L-1; each one module, or"
    " (share='none') a ModuleDict of modalities",
}
"""What a user's own networks map to what; 'twice' is side by side along the channels: mean and
log-variance, or what comes down and what comes up."""

Maps = tuple[Shape, ...]

_RANKS = {"mlp": 0, "conv2d": 2, "conv3d": 3}
_CHANNELS = {0: [128], 2: [32, 64, 128], 3: [16, 32, 64]}


def blocks_of(config: LevelsConfig) -> Blocks:
    """Shapes and blocks of all levels.

    Raises:
        ConfigError: No modality has a grid for maps, one level cannot be a vector over maps, or
            there is nothing to normalise a channel over.
    """
    rank = _rank(config)
    grid = _grid(config, rank)
    top_is_map = bool(rank) and config.top == "map"
    if rank and config.n_levels == 1 and not top_is_map:
        raise ConfigError(
            "a single level over maps cannot be a vector; set n_levels of 2 or more, or top='map'",
            "n_levels",
        )
    own = config.latent_channels or [config.latent_dim] * (config.n_levels - 1)
    return Blocks.of(
        grid,
        config.channels or _CHANNELS[rank],
        [*own, config.latent_dim],
        top_is_map,
        config.normalisation,
        config.weight_norm,
    )


def encoder(model: LevelledVAE, name: str, custom: Mapping[str, nn.Module]) -> nn.Module:
    """Values (and element mask) of a modality -> its first features F_1."""
    own, blocks = model.config.modalities[name], blocks_of(model.config)
    shape = blocks.features[0]
    if not _is_map(own.shape, blocks.rank):
        trunk, counts = model.encoder_trunk(name, custom)
        features: int = trunk.out_features  # type: ignore[assignment]
        last = Broadcast(features, shape) if blocks.rank else nn.Linear(features, shape[0])
        return Features(trunk, last, counts, None)
    if name in custom:
        _check(blocks, custom[name], f"encoder of {name!r}", own.shape, shape)
        return Features(custom[name], nn.Identity(), False, False)
    if own.encoder is None:
        raise no_network("encoder", name)
    head: LikelihoodHead = build("likelihoods", own.likelihood, own.shape)
    stem = blocks.stem(own.shape[0] * (1 + own.element_mask), model.config.first_stride)
    return Features(stem, nn.Identity(), head.counts, own.element_mask)


def decoder(
    model: LevelledVAE, name: str, custom: Mapping[str, nn.Module]
) -> ModalityDecoder | None:
    """Z_1, a map -> parameters of a modality; None where Z_1 is a vector."""
    own, blocks = model.config.modalities[name], blocks_of(model.config)
    if not blocks.rank:
        return None
    head: LikelihoodHead = build("likelihoods", own.likelihood, own.shape)
    shape = (head.n_params * own.shape[0], *own.shape[1:])
    if name in custom:
        check_decoder(custom[name], name, blocks.latents[0], shape)
        return ModalityDecoder(custom[name], head, own.shape)
    if own.decoder is None:
        raise no_network("decoder", name)
    if _is_map(own.shape, blocks.rank):
        return ModalityDecoder(blocks.image(shape), head, own.shape)
    try:
        vector = build("decoders", own.decoder, blocks.features[0][0], shape)
    except ConfigError as error:
        raise error.under(f"modalities.{name}.decoder") from error
    return ModalityDecoder(Pooled(blocks.pooled(), vector), head, own.shape)


def by_role(model: LevelledVAE, own: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The networks between encoders and decoders: built, or the user's own after a check.

    Raises:
        ConfigError: A network does not map shapes as it must, or serves several modalities.
    """
    blocks, names, share = blocks_of(model.config), model.modalities, model.config.share
    features, latents = blocks.features, blocks.latents
    lower = range(1, len(latents))

    def make(role: str, place: Any, build_one: Callable[[], nn.Module], maps: Maps) -> nn.Module:
        """A block, or what the user gave at a place, such as ``("a", 0)``, of a role."""
        if role not in own:
            return build_one()
        found = own[role]
        for key in place:
            found = _at(found, key, role)
        _check(blocks, found, f"{role} {list(place) or ''}".strip(), *maps)
        return found

    def per_modality(common: bool, make_one: Callable[..., nn.Module]) -> nn.Module:
        if common:
            return Shared(make_one())
        made = {name: make_one(name) for name in names}
        if len({*map(id, made.values())}) < len(made):
            raise ConfigError("one module serves several modalities; copy it, or set 'share'")
        return PerModality(made)

    return {
        "bottom_up": PerModality(
            {
                name: nn.ModuleList(
                    make("bottom_up", (name, i), partial(blocks.up, i + 1), features[i : i + 2])
                    for i in range(len(features) - 1)
                )
                for name in names
            }
        ),
        "top": per_modality(
            share == "all",
            lambda *at: make("top", at, blocks.top, (features[-1], _twice(latents[-1]))),
        ),
        "top_down": nn.ModuleList(
            make("top_down", (i - 1,), partial(blocks.down, i), (latents[i], features[i - 1]))
            for i in lower
        ),
        "prior": nn.ModuleList(
            make(
                "prior",
                (i - 1,),
                partial(blocks.prior, i),
                (features[i - 1], _twice(latents[i - 1])),
            )
            for i in lower
        ),
        "posterior": nn.ModuleList(
            per_modality(
                share != "none",
                lambda *at, i=i: make(
                    "posterior",
                    (i - 1, *at),
                    partial(blocks.posterior, i),
                    (_twice(features[i - 1]), _twice(latents[i - 1])),
                ),
            )
            for i in lower
        ),
    }


def _check(blocks: Blocks, network: nn.Module, what: str, inputs: Shape, outputs: Shape) -> None:
    """Try a user's own network; the message shows all shapes, since others must fit too."""
    try:
        check_network(network, what, inputs, outputs)
    except ConfigError as error:
        raise ConfigError(f"{error}\n{blocks}") from error


def _at(found: Any, key: str | int, role: str) -> Any:
    try:
        return found[key]
    except (IndexError, KeyError, TypeError) as error:
        raise ConfigError(
            f"has nothing at {key!r}; it must be a {ROLES[role]}", f"networks.{role}"
        ) from error


def _twice(shape: Shape) -> Shape:
    return (2 * shape[0], *shape[1:])


def _rank(config: LevelsConfig) -> int:
    """Axes of the grid; 0 for vectors."""
    if config.network != "auto":
        return _RANKS[config.network]
    ranks = {len(own.shape) - 1 for own in config.modalities.values()}
    rank = ranks.pop() if len(ranks) == 1 else 0
    return rank if rank in (2, 3) else 0


def _grid(config: LevelsConfig, rank: int) -> Shape:
    """Sides of the finest level: the largest of all modalities, over the first stride."""
    if not rank:
        return ()
    maps = [own.shape[1:] for own in config.modalities.values() if _is_map(own.shape, rank)]
    if not maps:
        raise ConfigError(
            f"no modality has {rank} axes beside its channels; choose 'mlp', or 'auto'", "network"
        )
    step = config.first_stride
    return tuple((max(sides) + step - 1) // step for sides in zip(*maps, strict=True))


def _is_map(shape: Shape, rank: int) -> bool:
    return bool(rank) and len(shape) == rank + 1

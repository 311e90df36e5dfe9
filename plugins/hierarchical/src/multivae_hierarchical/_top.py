"""The top level of Nexus: its options, messages up, predictions down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from multivae_core.config import build, component, config, each, positive
from multivae_core.data import Batch
from multivae_core.distributions import Normal
from multivae_core.errors import ConfigError
from multivae_core.model_config import ModelConfig
from multivae_core.networks.heads import PerModality
from multivae_core.private_latents import check_names
from multivae_hierarchical._modules import check_network
from multivae_hierarchical._options import choice

__all__ = ["ROLES", "TopConfig", "TopLevel"]

ROLES = {
    "messages": "ModuleDict of modality -> module of its latent -> message",
    "top_encoder": "message -> mean and log-variance of the top latent, side by side",
    "top_decoders": "ModuleDict of modality -> module of the top latent -> its latent",
}


_MOMENTUM = 0.1
_HIDDEN = {
    "type": "mlp",
    "hidden": [512, 512],
    "activation": "leaky_relu",
    "normalisation": "layer",
}


@config
class TopConfig(ModelConfig):
    """Options of the top level of Nexus.

    Args:
        modality_dims: Size of single modalities' latents; those left out have ``latent_dim``.
        msg_dim: Size of the messages.
        messages: Networks that turn a modality's latent into its message.
        top_encoder: Network that turns the messages into the top posterior. By default it is
            normalised within a row; the authors' batch normalisation mixes rows.
        top_decoders: Networks that predict a modality's latent from the top one.
        aggregate: Whether the messages' ``mean`` or their ``sum`` is taken.
        top_likelihood: How the prediction of a modality's latent is scored: ``gaussian``, or
            ``squared_error``, without 1/2 and constants as in the authors' code; as a density
            this has variance 1/2.
        top_scales: Deviations s_m under ``gaussian``; 1 for those left out. A weight gamma is no
            deviation: likelihoods see s_m alone.
        adapt_top_scale: Modalities whose s_m is the root mean square of what the top misses, over
            the rows at hand (each process has its own) and all dimensions; outside training a
            running mean of it.
    """

    modality_dims: dict[str, int] = attrs.field(factory=dict, validator=each(positive))
    msg_dim: int = attrs.field(default=512, validator=positive)
    messages: Any = component("decoders", default={"type": "mlp", "hidden": []})
    top_encoder: Any = component("decoders", default=_HIDDEN)
    top_decoders: Any = component("decoders", default=_HIDDEN)
    aggregate: str = choice("mean", "sum")
    top_likelihood: str = choice("gaussian", "squared_error")
    top_scales: dict[str, float] = attrs.field(factory=dict, validator=each(positive))
    adapt_top_scale: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        for option in ("modality_dims", "top_scales", "adapt_top_scale"):
            check_names(self, option)
        if self.top_likelihood == "squared_error" and (self.top_scales or self.adapt_top_scale):
            raise ConfigError("needs top_likelihood='gaussian'", "top_scales")


class TopLevel(nn.Module):
    """Networks of the top level, and the deviations of what it predicts.

    Args:
        config: The configuration.
        dims: Modality -> size of its latent.
        own: Role -> the user's own networks.
    """

    log_variances: Tensor

    def __init__(self, config: TopConfig, dims: Mapping[str, int], own: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.names = tuple(dims)
        size, message = config.latent_dim, config.msg_dim

        def make(role: str, name: str | None, inputs: int, outputs: int) -> nn.Module:
            if role not in own:
                built: nn.Module = build("decoders", getattr(config, role), inputs, (outputs,))
                return built
            try:
                found: nn.Module = own[role] if name is None else own[role][name]
            except (KeyError, TypeError) as error:
                raise ConfigError(f"must be a {ROLES[role]}", f"networks.{role}") from error
            what = role if name is None else f"{role} of {name!r}"
            check_network(found, what, (inputs,), (outputs,))
            return found

        self.messages = PerModality({m: make("messages", m, d, message) for m, d in dims.items()})
        self.encoder = make("top_encoder", None, message, 2 * size)
        self.decoders = PerModality({m: make("top_decoders", m, size, d) for m, d in dims.items()})
        plain = config.top_likelihood == "squared_error"
        scales = [math.sqrt(0.5) if plain else config.top_scales.get(m, 1.0) for m in dims]
        # a buffer: where it is adapted it belongs to the weights
        self.register_buffer("log_variances", 2.0 * torch.tensor(scales).log())

    def posterior(self, z: Mapping[str, Tensor], batch: Batch, heard: Tensor) -> Normal:
        """q(u | messages), N(0, I) in rows without any.

        Args:
            z: Modality -> ``(n, B, d)``.
            batch: Says which rows have which modality.
            heard: ``(B, M)`` bool, the messages that are passed on.

        Returns:
            Over ``(n, B, D)``.
        """
        total: Any = 0.0
        for column, name in enumerate(self.names):
            rows = batch.rows(name)
            own = z[name] if rows is None else z[name].index_select(1, rows)
            message = _over(self.messages[name], own)
            if rows is not None:
                empty = message.new_zeros(len(message), batch.size, message.shape[2])
                message = empty.index_copy(1, rows, message)
            total = total + torch.where(heard[:, column, None], message, 0.0)
        count = heard.sum(dim=1, keepdim=True).clamp_min(1)
        mean, log_variance = _over(
            self.encoder, total / count if self.config.aggregate == "mean" else total
        ).chunk(2, dim=2)
        something = heard.any(dim=1, keepdim=True)
        return Normal(torch.where(something, mean, 0.0), torch.where(something, log_variance, 0.0))

    def predict(self, u: Tensor) -> dict[str, Tensor]:
        """f_m(u) of every modality: ``(n, B, D)`` -> ``(n, B, d)``."""
        return {name: _over(self.decoders[name], u) for name in self.names}

    def missed(
        self, z: Mapping[str, Tensor], u: Tensor, batch: Batch, training: bool
    ) -> dict[str, Tensor]:
        """-log N(z_m; f_m(u), s_m^2 I), or the squared error, in nats; 0 without the modality."""
        found = {}
        for name, predicted in self.predict(u).items():
            column = batch.column(name)[:, None]
            error = torch.where(column, (z[name] - predicted)[0].square(), 0.0)
            if self.config.top_likelihood == "squared_error":
                found[name] = error.sum(dim=1)
                continue
            log_variance = self.log_variance(name)
            if training and name in self.config.adapt_top_scale and bool(column.any()):
                mean = error.sum() / (column.sum() * error.shape[1])
                log_variance = mean.clamp_min(1e-12).log()
                self.follow(name, log_variance.detach(), _MOMENTUM)
            constant = log_variance + math.log(2.0 * math.pi)
            nats = 0.5 * (error * (-log_variance).exp() + constant).sum(dim=1)
            found[name] = torch.where(column[:, 0], nats, 0.0)
        return found

    def log_variance(self, name: str) -> Tensor:
        """Log s_m^2, a scalar."""
        return self.log_variances[self.names.index(name)]

    def likelihood(self, name: str, predicted: Tensor) -> Normal:
        """p(z_m | u)."""
        return Normal(predicted, self.log_variance(name).expand_as(predicted))

    def follow(self, name: str, log_variance: Tensor, momentum: float) -> None:
        """Move log s_m^2 towards that of a batch."""
        place = self.names.index(name)
        self.log_variances[place] += momentum * (log_variance - self.log_variances[place])


def _over(network: nn.Module, value: Tensor) -> Tensor:
    """Run a network over ``(n, B, D)``."""
    out: Tensor = network(value.flatten(0, 1))
    return out.view(*value.shape[:2], out.shape[1])

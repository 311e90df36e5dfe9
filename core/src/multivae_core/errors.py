"""The exceptions of the library: each message names the thing, the rule and the remedy."""

from __future__ import annotations

__all__ = [
    "CapabilityError",
    "ConfigError",
    "DataError",
    "FileFormatError",
    "MultivaeError",
    "NameConflictError",
    "PluginWarning",
    "RegistryError",
    "TrainingError",
    "UnknownComponentError",
]


class MultivaeError(Exception):
    """Root of every error that the library raises on purpose."""


class DataError(MultivaeError, ValueError):
    """Data that break a rule: the message names the modality, the row and the remedy."""


class ConfigError(MultivaeError, ValueError):
    """A configuration value that is not allowed.

    Args:
        message: The rule that was broken and the value that broke it.
        path: Where in the configuration, for example ``modalities.svhn.likelihood.scale``.
    """

    def __init__(self, message: str, path: str = "") -> None:
        self.message = message
        self.path = path
        super().__init__(f"{path}: {message}" if path else message)

    def under(self, prefix: str) -> ConfigError:
        """Return the same error seen from one level further out."""
        path = f"{prefix}.{self.path}" if self.path else prefix
        return ConfigError(self.message, path)


class RegistryError(MultivaeError, LookupError):
    """A component that cannot be found, or cannot be told from another."""


class UnknownComponentError(RegistryError):
    """No installed plugin offers a component of that name."""


class NameConflictError(RegistryError):
    """Several plugins offer a component of that name; the qualified names are in the message."""


class CapabilityError(MultivaeError, NotImplementedError):
    """The model does not have what was asked of it; the message says why."""


class FileFormatError(MultivaeError, ValueError):
    """A saved file that is missing, damaged or not what the model needs."""


class TrainingError(MultivaeError, RuntimeError):
    """Training that cannot go on; the message names the step and the last good checkpoint."""


class PluginWarning(UserWarning):
    """A plugin that could not be used; the others are not affected."""

"""Composes one primary configuration with many sets of overrides: what they share is read and merged once. No torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

# Hydra's parser, its loader and OmegaConf raise what Python does: ValueError for ``loss=null`` and for thousands of
# digits, OSError for a name that no file can have, RecursionError for deep brackets, OverflowError for large numbers.
# Whatever it is, the override is wrong.


class Composer:
    """Hydra's composition, called with one set of overrides after the other.

    Only group choices decide which files are read and how they are merged, which takes most of the time. So their
    result is kept, and the other overrides are applied to a copy of it, as Hydra applies them.

    Args:
        config_name: The primary configuration. Hydra's global state must be initialised for as long as this is used.
    """

    def __init__(self, config_name: str) -> None:
        self._config_name = config_name
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Override | Exception] = {}
        self._composed: dict[tuple[str, ...], DictConfig | Exception] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig | Exception:
        """The composed configuration; Hydra's exception if it fails."""
        parsed: list[Override] = []
        for override in overrides:
            outcome = self._parse(override)
            if isinstance(outcome, Exception):
                return outcome
            parsed.append(outcome)
        base = self._base(tuple(text for text, each in zip(overrides, parsed, strict=True) if not _is_value(each)))
        if isinstance(base, Exception):
            return base
        config = copy.deepcopy(base)
        try:
            ConfigLoaderImpl._apply_overrides_to_config(list(filter(_is_value, parsed)), config)
        except Exception as error:  # noqa: BLE001 - see above
            return error
        return config

    def _parse(self, override: str) -> Override | Exception:
        if override not in self._parsed:
            self._parsed[override] = parsed_override(override, self._parser)
        return self._parsed[override]

    def _base(self, overrides: tuple[str, ...]) -> DictConfig | Exception:
        if overrides not in self._composed:
            try:
                self._composed[overrides] = compose(self._config_name, overrides=list(overrides))
            except Exception as error:  # noqa: BLE001 - see above
                self._composed[overrides] = error
        return self._composed[overrides]


def parsed_override(override: str, parser: OverridesParser | None = None) -> Override | Exception:
    """The override as Hydra reads it; what its parser raises if it is none."""
    try:
        return (parser or OverridesParser.create()).parse_overrides([override])[0]
    except Exception as error:  # noqa: BLE001 - see above
        return error


def _is_value(override: Override) -> bool:
    """Whether an override changes values only; a name with a dot is no group, since a group's name is a path."""
    key = override.key_or_group
    is_dotted = "." in key and override.package is None
    return is_dotted and key.partition(".")[0] != "hydra" and not override.is_sweep_override()

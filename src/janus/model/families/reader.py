"""Typed look-ups in a raw ``config.json``, with errors that name the key and the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus.errors import CheckpointError


class ConfigReader:
    """``keys`` are spellings of one setting, the first that is there (and not null) wins, in ``defaults`` then.

    Every method raises CheckpointError if the setting is missing and has no default, or is of the wrong type or range.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        """``defaults`` are a family's own; those of a single call come after them."""
        self.raw = raw
        self.where = where
        self._defaults = defaults or {}

    def integer(self, *keys: str, default: int | None = None, minimum: int = 1) -> int:
        """Return an integer of at least ``minimum``."""
        key, value = self._find(keys, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise CheckpointError(self.where, f"{key} is {value!r}, expected an integer of at least {minimum}")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """Return a positive number."""
        key, value = self._find(keys, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise CheckpointError(self.where, f"{key} is {value!r}, expected a positive number")
        return float(value)

    def flag(self, *keys: str, default: bool = False) -> bool:
        """Return a boolean."""
        key, value = self._find(keys, default)
        if not isinstance(value, bool):
            raise CheckpointError(self.where, f"{key} is {value!r}, expected true or false")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """Return a list of non-negative integers, or a single one; empty if the key is missing or null."""
        value = self.raw.get(key, self._defaults.get(key))
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in listed):
            raise CheckpointError(self.where, f"{key} is {value!r}, expected a list of integers")
        return tuple(listed)

    def merged(self) -> dict[str, Any]:
        """Return all settings, those of the family where the file is silent or null."""
        return {**self._defaults, **{key: value for key, value in self.raw.items() if value is not None}}

    def refuse(self, key: str, problem: str, supported: str) -> CheckpointError:
        """Return the error for a feature that is not supported."""
        return CheckpointError(
            self.where, f"{key} = {self.raw.get(key)!r} is not supported{problem}", f"supported: {supported}"
        )

    def _find(self, keys: tuple[str, ...], default: Any) -> tuple[str, Any]:
        for settings in (self.raw, self._defaults):
            for key in keys:
                value = settings.get(key)
                if value is not None:
                    return key, value
        if default is None:
            raise CheckpointError(self.where, f"{' / '.join(keys)} is missing")
        return keys[0], default

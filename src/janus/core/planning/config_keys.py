"""Reads the keys of a Hugging Face ``config.json``, which differ from family to family. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from janus.errors import ConfigError


class Keys:
    """The keys of one config, under whichever of their names they are there.

    A model that sees and reads keeps those of the language model in ``text_config``; they are looked up there first.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        text = config.get("text_config")
        self._keys: dict[str, Any] = {**config, **text} if isinstance(text, Mapping) else dict(config)

    def __contains__(self, name: str) -> bool:
        return self._keys.get(name) is not None

    @property
    def family(self) -> str:
        """``model_type``; empty where the config has none."""
        return self.text("model_type")

    def number(self, *names: str, default: int | None = None) -> int:
        """Return the first of ``names`` that is there.

        Raises:
            ConfigError: none is and there is no ``default``, or it is no whole number of 0 or more; names the key.
        """
        for name in names:
            value = self._keys.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"config.json: {name}", f"is {value!r}", "give a whole number of 0 or more")
            return value
        if default is None:
            also = f"; also known as {', '.join(names[1:])}" if len(names) > 1 else ""
            raise ConfigError(
                f"config.json: {names[0]}", "is missing", f"give the config of a model with experts{also}"
            )
        return default

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return whether ``name`` is true; ``default`` where it is not there."""
        return bool(self._keys[name]) if name in self else default

    def text(self, name: str) -> str:
        """Return a text; empty where there is none."""
        value = self._keys.get(name)
        return value if isinstance(value, str) else ""

    def sequence(self, name: str) -> Sequence[Any]:
        """Return a list; empty where there is none."""
        value = self._keys.get(name)
        return value if isinstance(value, list | tuple) else ()

    def table(self, name: str) -> Mapping[str, Any]:
        """Return a table; empty where there is none."""
        value = self._keys.get(name)
        return value if isinstance(value, Mapping) else {}

"""How many instances of each role a cluster should have, and the words in which a user says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from janus.errors import ConfigError
from janus.messages.control import Role, SetExpected

_NUMBER = re.compile(r"[+-]?\d{1,6}")
#: Field of ``Sizes`` -> role.
SCALED: dict[str, Role] = {"gateways": "gateway", "attention": "attention", "experts": "expert"}
_FIELDS = {role: field for field, role in SCALED.items()}
_LIMITS = {"gateways": 64, "attention": 256, "experts": 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Numbers of instances."""

    gateways: int
    attention: int
    experts: int

    def of(self, role: Role) -> int:
        """The number of ``role``; there is always one controller."""
        return 1 if role == "controller" else int(getattr(self, _FIELDS[role]))

    def at_least(self, other: Sizes) -> Sizes:
        """The larger number of each role."""
        return Sizes(**{field: max(getattr(self, field), getattr(other, field)) for field in SCALED})

    def plus(self, role: Role, count: int) -> Sizes:
        """``count`` more of ``role``."""
        return replace(self, **{_FIELDS[role]: self.of(role) + count})

    def message(self) -> SetExpected:
        """What the controller is told."""
        return SetExpected(gateways=self.gateways, attention=self.attention, experts=self.experts)

    def changed(self, wanted: dict[str, str | int | None]) -> Sizes:
        """These numbers with those that the user named: ``3``, ``+1``, ``-1``, or ``None`` to leave one as it is.

        Raises:
            ConfigError: not a number, or out of range; zero experts or attention instances cannot serve anything.
        """
        return replace(
            self,
            **{field: self._resolve(field, text) for field, text in wanted.items() if text is not None},
        )

    def _resolve(self, field: str, text: str | int) -> int:
        words, option = str(text).strip(), f"--{field}"
        if not _NUMBER.fullmatch(words):
            raise ConfigError(option, f"{text!r} is not a number of instances", "give N, +N or -N, e.g. 3 or +1")
        present: int = getattr(self, field)
        count = int(words) + (present if words[0] in "+-" else 0)
        if field == "experts" and present == 0 and count:
            problem = "this cluster is monolithic: its experts are in the attention instances"
            raise ConfigError(option, problem, "scale --attention, or start a cluster without --monolithic")
        if count < 1 and present:
            why = "without one, no request can be served" if field != "gateways" else "without one, nobody can connect"
            problem = f"{present} {words} is {count}" if words[0] in "+-" else f"{count} is too few"
            raise ConfigError(option, f"{problem}: {why}", f"keep at least 1 (there are {present}), or run janus down")
        if count > _LIMITS[field]:
            raise ConfigError(option, f"{count} is out of range", f"use at most {_LIMITS[field]} instances")
        return count

    def difference(self, wanted: Sizes) -> Iterator[str]:
        """Yield what changes, in words: ``experts 1 -> 3``."""
        for field in SCALED:
            old, new = getattr(self, field), getattr(wanted, field)
            if old != new:
                yield f"{field} {old} -> {new}"

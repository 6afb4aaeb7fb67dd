"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

#: ``problem``: a start would not work. ``warning``: it would, but something is worse than it could be.
Level: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. ``remedy`` is empty exactly when ``level`` is ok."""

    check: str
    level: Level
    detail: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.level == "ok") == bool(self.remedy):
            raise ValueError(f"{self.check}: a remedy belongs to a warning or a problem, and to nothing else")


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check=check, level="ok", detail=detail)


def warning(check: str, detail: str, remedy: str) -> Finding:
    """It works, but not as well as it could."""
    return Finding(check=check, level="warning", detail=detail, remedy=remedy)


def problem(check: str, detail: str, remedy: str) -> Finding:
    """A start would not work."""
    return Finding(check=check, level="problem", detail=detail, remedy=remedy)

"""Profile files: what hardware does, measured here or published; docs/planning.md has the format."""

from __future__ import annotations

from janus.profiles.files import load_profile, parse, shipped
from janus.profiles.writing import to_toml, write_profile

__all__ = ["load_profile", "parse", "shipped", "to_toml", "write_profile"]

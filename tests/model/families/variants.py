"""Every family's random configs: what its test varies, for the tests that are about all families."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from transformers import PreTrainedConfig

from janus.model.families import FAMILIES

_TESTS: Mapping[str, ModuleType] = {
    family: import_module(f"tests.model.families.test_{family}") for family in sorted(FAMILIES)
}
#: Family -> name of a variant -> keys of its config.
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {family: test.VARIANTS for family, test in _TESTS.items()}


def config_of(family: str, **changes: Any) -> PreTrainedConfig:
    """The small config of ``family``'s test, with ``changes``."""
    config: PreTrainedConfig = _TESTS[family].config_of(**changes)
    return config

"""Model families: one small adapter each, that knows config keys and tensor names and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus.errors import CheckpointError
from janus.model.families.base import Family
from janus.model.families.decoder import DecoderFamily
from janus.model.families.deepseek_v2 import DeepseekV2Family
from janus.model.families.deepseek_v3 import DeepseekV3Family
from janus.model.families.glm4_moe import Glm4MoeFamily
from janus.model.families.gpt_oss import GptOssFamily
from janus.model.families.mixtral import MixtralFamily
from janus.model.families.olmoe import OlmoeFamily
from janus.model.families.qwen2_moe import Qwen2MoeFamily
from janus.model.families.qwen3_moe import Qwen3MoeFamily

_ADAPTERS: tuple[DecoderFamily, ...] = (
    DeepseekV2Family(),
    DeepseekV3Family(),
    Glm4MoeFamily(),
    GptOssFamily(),
    MixtralFamily(),
    OlmoeFamily(),
    Qwen2MoeFamily(),
    Qwen3MoeFamily(),
)

#: By the ``model_type`` of ``config.json``.
FAMILIES: Mapping[str, Family] = {adapter.model_type: adapter for adapter in _ADAPTERS}


def family_of(raw: Mapping[str, Any], where: str) -> Family:
    """Return the adapter for the ``model_type`` of a raw ``config.json``. Raises CheckpointError if there is none."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(
            where, f"model_type {model_type!r} is not supported", f"supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def family_named(family: str) -> Family:
    """Return the adapter called ``family`` (``ModelConfig.family``)."""
    return FAMILIES[family]

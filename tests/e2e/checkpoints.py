"""Random-weight checkpoints: Qwen3-MoE in shapes of their own, and every family as its tests vary it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import Qwen3MoeConfig

from janus.model.config import ModelConfig
from janus.model.random_model import write_random_model
from tests.e2e import vocabularies
from tests.model.families.harness import write as write_model
from tests.model.families.quantised import dequantised
from tests.model.families.variants import VARIANTS, config_of

BUNDLED = Path(__file__).parents[2] / "models" / "janus-tiny"
_VOCAB = 300
#: Large, so that answers vary: with the usual 0.02 a random model repeats one token for ever (here about 30 of 64
#: tokens of an answer differ; float32 is within 4e-5 of float64 in every log-probability).
_STD = 0.3
#: In the directory of a quantised model.
_PLAIN = "dequantised"


@dataclass(frozen=True)
class Shape:
    """One random model: what differs from the defaults below, and how its tokens read."""

    config: dict[str, Any]
    write_tokenizer: Callable[[Path, int], None] = vocabularies.write_named
    #: Largest file, so that some checkpoints come in shards.
    shard_size: str = "1GB"


SHAPES: dict[str, Shape] = {
    # Grouped-query attention, heads that together are wider than the model, normalised gate weights.
    "grouped": Shape({"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    # Tied embeddings, raw gate weights, experts that no number of instances here divides, several files.
    "tied": Shape(
        {"tie_word_embeddings": True, "num_experts": 10, "num_experts_per_tok": 4, "norm_topk_prob": False},
        shard_size="150KB",
    ),
    # One key-value head for all, one expert per token, dense layers named one by one.
    "mqa": Shape(
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "num_experts": 6,
            "num_experts_per_tok": 1,
            "mlp_only_layers": [0, 2],
            "num_hidden_layers": 4,
        }
    ),
    # Every second layer is dense; as many key-value heads as heads; another base of the rotary embedding.
    "sparse": Shape(
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 16,
            "decoder_sparse_step": 2,
            "num_hidden_layers": 5,
            "num_experts": 16,
            "num_experts_per_tok": 5,
            "norm_topk_prob": False,
            "rope_theta": 1_000_000.0,
        }
    ),
    # Attention biases, tied embeddings, dense layers by both settings, all experts chosen, tokens that end inside
    # characters.
    "biased": Shape(
        {
            "attention_bias": True,
            "tie_word_embeddings": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "num_hidden_layers": 6,
            "num_experts": 4,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
        },
        write_tokenizer=vocabularies.write_torn,
    ),
}


#: Every config of ``tests/model/families``, by family and variant.
FAMILIES: dict[str, tuple[str, Mapping[str, Any]]] = {
    f"{family}-{variant}": (family, changes) for family, each in VARIANTS.items() for variant, changes in each.items()
}
#: In the forms that models are published in: the family, sizes that the form needs, and the form.
QUANTISED: dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "deepseek_v3-fp8": ("deepseek_v3", {"n_group": 4, "topk_group": 2}, {"fp8_block": (9, 14)}),
    "gpt_oss-mxfp4": ("gpt_oss", {"hidden_size": 64, "intermediate_size": 32}, {"mxfp4": True}),
    "qwen3_moe-fp8": ("qwen3_moe", {"mlp_only_layers": [1]}, {"fp8_block": (16, 12)}),
}


def write(name: str, directory: Path) -> Path:
    """Write the model called ``name``, or a copy of the bundled one, and return its directory."""
    if name == "janus-tiny":
        return Path(shutil.copytree(BUNDLED, directory))
    if name in QUANTISED:
        return _write_quantised(*QUANTISED[name], directory)
    if name in FAMILIES:
        family, changes = FAMILIES[name]
        write_model(config_of(family, **{"vocab_size": _VOCAB, **changes}), directory)
        vocabularies.write_named(directory, _VOCAB)
        return directory
    shape = SHAPES[name]
    config = Qwen3MoeConfig(
        **{
            "vocab_size": _VOCAB,
            "hidden_size": 48,
            "intermediate_size": 80,
            "moe_intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "initializer_range": _STD,
            "bos_token_id": None,
            "pad_token_id": 0,
            "eos_token_id": 1,
            **shape.config,
        }
    )
    write_model(config, directory, seed=len(name), shard_size=shape.shard_size)
    shape.write_tokenizer(directory, _VOCAB)
    return directory


def reference(directory: Path) -> Path:
    """What ``transformers`` reads in place of the model in ``directory``: the same, or what it stands for in f32."""
    plain = directory / _PLAIN
    return plain if plain.is_dir() else directory


def _write_quantised(family: str, sizes: Mapping[str, Any], form: Mapping[str, Any], directory: Path) -> Path:
    """Weights in ``form`` by Janus itself, and beside them what they stand for."""
    with tempfile.TemporaryDirectory() as shape:
        config = ModelConfig.load(write_model(config_of(family, **{"vocab_size": _VOCAB, **sizes}), Path(shape)))
    write_random_model(directory, replace(config, **form), seed=len(family), std=0.2)
    dequantised(directory, directory / _PLAIN)
    for each in (directory, directory / _PLAIN):
        vocabularies.write_named(each, _VOCAB)
    return directory

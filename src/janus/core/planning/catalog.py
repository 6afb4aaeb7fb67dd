"""``ModelSizes`` from a Hugging Face ``config.json``, and of the models that are known by name. Pure.

What is counted is what a server holds: heads for speculative decoding (MTP) are left out. Layers with a sliding window
count like the others, so a long context is predicted to cost no less than it does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from janus.core.planning.config_keys import Keys
from janus.core.planning.known_models import CONFIGS
from janus.core.planning.sizes import ModelSizes
from janus.core.planning.widths import WIDTHS, Widths, widths_of
from janus.errors import ConfigError

#: Families whose query, key and value projections have a bias unless ``qkv_bias`` says otherwise; and those in which,
#: with ``attention_bias``, the projection on the way out has one too.
_QKV_BIAS = {"qwen2_moe"}
_OUT_BIAS = {"qwen3_moe", "olmoe", "gpt_oss"}
#: Families that normalise each head's query and key, and those that normalise the whole projection.
_HEAD_NORM = {"qwen3_moe"}
_WIDE_NORM = {"olmoe"}
#: Families whose router adds a learned bias to the scores.
_ROUTER_BIAS = {"deepseek_v3", "glm4_moe", "kimi_k2", "gpt_oss"}


def names() -> list[str]:
    """Return the names that ``named`` knows."""
    return list(CONFIGS)


def named(name: str, *, dtype: str | None = None) -> ModelSizes:
    """Return the sizes of a model known by name; case does not matter.

    Raises:
        ConfigError: no model of that name is known; names those that are.
    """
    for known, published in CONFIGS.items():
        if known.lower() == name.lower():
            return sizes_of(published.config, name=known, dtype=dtype)
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in CONFIGS], n=1, cutoff=0.6)
    hint = next((f"did you mean {known}? " for known in CONFIGS if near and known.lower() == near[0]), "")
    raise ConfigError(
        "model", f"no model is known as {name!r}", f"{hint}give a config.json or one of {', '.join(CONFIGS)}"
    )


def sizes_of(config: Mapping[str, Any], *, name: str = "", dtype: str | None = None) -> ModelSizes:
    """Return the sizes of the MoE model that ``config``, a Hugging Face ``config.json``, describes.

    Widths are those of the published weights (FP8 and MXFP4 with their scales); with ``dtype`` (float32, bfloat16,
    float16) everything is held in that type, as a server with ``--dtype`` does.

    Raises:
        ConfigError: a key that the counts need is missing or no number, or the model has no experts.
    """
    keys = Keys(config)
    family = keys.family
    hidden = keys.number("hidden_size", "d_model", "n_embd")
    layers = keys.number("num_hidden_layers", "n_layer", "num_layers")
    experts = keys.number("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
    inner = keys.number("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
    moe_layers = _moe_layers(keys, layers)
    matrices = 3 * hidden * inner
    biases = 2 * inner + hidden if family == "gpt_oss" else 0
    vocab = keys.number("vocab_size") * hidden
    counts = ModelSizes(
        name=name or keys.text("_name_or_path") or family,
        hidden=hidden,
        layers=layers,
        moe_layers=moe_layers,
        experts=experts,
        top_k=keys.number("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k", "top_k"),
        expert_params=matrices + biases,
        # Two norms: before attention, and before the MLP.
        attention_params=_attention_params(keys, hidden) + 2 * hidden,
        shared_params=_shared_params(keys, hidden, inner) + experts * (hidden + (family in _ROUTER_BIAS)),
        dense_params=3 * hidden * _dense_inner(keys, inner) if moe_layers < layers else 0,
        # A table that is the output matrix too is there once, and read whole. The last norm goes with it.
        embedding_params=0 if keys.flag("tie_word_embeddings") else vocab,
        head_params=vocab + hidden,
        kv_elements=_kv_elements(keys, hidden),
        context_flops=_context_flops(keys, hidden),
        kv_parts=1 if "kv_lora_rank" in keys else _kv_heads(keys, keys.number("num_attention_heads", "n_head")),
    )
    if dtype is not None:
        if dtype not in WIDTHS:
            raise ConfigError("dtype", f"{dtype!r} is no type to serve in", f"give one of {', '.join(WIDTHS)}")
        return _with(counts, Widths.same(WIDTHS[dtype]))
    return _with(counts, widths_of(config, counts, expert_biases=biases))


def _with(counts: ModelSizes, widths: Widths) -> ModelSizes:
    return replace(
        counts,
        weight_width=widths.weights,
        expert_width=widths.experts,
        kv_width=widths.kv,
        activation_width=widths.activations,
    )


def _moe_layers(keys: Keys, layers: int) -> int:
    """Layers with routed experts, by any of the ways in which configs say it."""
    dense = set(range(keys.number("first_k_dense_replace", default=0)))
    dense |= {int(layer) for layer in keys.sequence("mlp_only_layers")}
    # DeepSeek counts from layer 0, Qwen from layer 1.
    every, sparse = keys.number("moe_layer_freq", default=1), keys.number("decoder_sparse_step", default=1)
    with_experts = (layer for layer in range(layers) if layer % every == 0 and (layer + 1) % sparse == 0)
    return _count(layer for layer in with_experts if layer not in dense)


def _count(items: Iterable[object]) -> int:
    return sum(1 for _ in items)


def _attention_params(keys: Keys, hidden: int) -> int:
    """One layer's projections with their biases and inner norms."""
    heads = keys.number("num_attention_heads", "n_head")
    if "kv_lora_rank" in keys:
        return _latent_params(keys, hidden, heads)
    kv_heads, head = _kv_heads(keys, heads), _head(keys, hidden, heads)
    q, kv = heads * head, kv_heads * head
    params = hidden * q + 2 * hidden * kv + q * hidden
    if keys.flag("attention_bias") or keys.flag("qkv_bias", default=keys.family in _QKV_BIAS):
        params += q + 2 * kv + (hidden if keys.family in _OUT_BIAS else 0)
    if keys.family == "gpt_oss":
        params += heads  # a learned sink each
    if keys.family in _HEAD_NORM or keys.flag("use_qk_norm"):
        params += 2 * head
    if keys.family in _WIDE_NORM:
        params += q + kv
    return params


def _latent_params(keys: Keys, hidden: int, heads: int) -> int:
    """Multi-head latent attention (arXiv 2405.04434, section 2.1)."""
    rank, rope = keys.number("kv_lora_rank"), keys.number("qk_rope_head_dim")
    nope, value = keys.number("qk_nope_head_dim"), keys.number("v_head_dim")
    query_rank, query = keys.number("q_lora_rank", default=0), heads * (nope + rope)
    queries = hidden * query_rank + query_rank + query_rank * query if query_rank else hidden * query
    latent = hidden * (rank + rope) + rank + rank * heads * (nope + value)
    biases = query_rank + rank + rope + hidden if keys.flag("attention_bias") else 0
    return queries + latent + heads * value * hidden + biases


def _shared_params(keys: Keys, hidden: int, inner: int) -> int:
    """The experts that every token passes, and the gate in front of them, if any."""
    width = keys.number("shared_expert_intermediate_size", default=0)
    if width:
        return 3 * hidden * width + (hidden if keys.family == "qwen2_moe" else 0)
    shared = keys.number("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", default=0)
    return 3 * hidden * inner * shared


def _dense_inner(keys: Keys, inner: int) -> int:
    return keys.number("intermediate_size", "ffn_hidden_size", default=inner)


def _kv_heads(keys: Keys, heads: int) -> int:
    return keys.number("num_key_value_heads", default=heads)


def _head(keys: Keys, hidden: int, heads: int) -> int:
    return keys.number("head_dim", default=hidden // heads)


def _kv_elements(keys: Keys, hidden: int) -> int:
    """Keys and values of a token in one layer; for latent attention the latent and the rotated key."""
    if "kv_lora_rank" in keys:
        return keys.number("kv_lora_rank") + keys.number("qk_rope_head_dim")
    heads = keys.number("num_attention_heads", "n_head")
    return 2 * _kv_heads(keys, heads) * _head(keys, hidden, heads)


def _context_flops(keys: Keys, hidden: int) -> int:
    """Scores and weighted sum, a multiplication and an addition each; latent attention computes in the latent space."""
    heads = keys.number("num_attention_heads", "n_head")
    if "kv_lora_rank" in keys:
        rank, rope = keys.number("kv_lora_rank"), keys.number("qk_rope_head_dim")
        return heads * (2 * (rank + rope) + 2 * rank)
    return heads * 4 * _head(keys, hidden, heads)

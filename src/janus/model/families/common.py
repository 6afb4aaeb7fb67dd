"""What config files of all families have in common: keys, checks, and which layers have experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus.errors import CheckpointError
from janus.model.config import GateConfig, ModelConfig
from janus.model.families.reader import ConfigReader
from janus.model.rope_parameters import RopeParameters

_GENERATION_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def common_config(family: str, read: ConfigReader, generation: Mapping[str, Any]) -> ModelConfig:
    """Return the config as most families spell it, every layer with experts; a family replaces what it spells so not.

    Raises:
        CheckpointError: a key is missing, or its value of the wrong type or range.
    """
    hidden_size, num_heads = read.integer("hidden_size"), read.integer("num_attention_heads")
    ends = (
        *ConfigReader(generation, "generation_config.json").integers("eos_token_id"),
        *read.integers("eos_token_id"),
    )
    return ModelConfig(
        family=family,
        vocab_size=read.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=read.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=read.integer("num_key_value_heads", default=num_heads),
        head_dim=read.integer("head_dim", default=max(1, hidden_size // num_heads)),
        max_position_embeddings=read.integer("max_position_embeddings", default=32_768),
        rope=RopeParameters.parse(read.merged(), read.where),
        rms_norm_eps=read.number("rms_norm_eps", default=1e-6),
        attention_bias=read.flag("attention_bias"),
        tie_word_embeddings=read.flag("tie_word_embeddings"),
        num_experts=read.integer("num_experts", "num_local_experts", "n_routed_experts"),
        top_k=read.integer("num_experts_per_tok"),
        gate=GateConfig(normalise=read.flag("norm_topk_prob")),
        moe_intermediate_size=read.integer("moe_intermediate_size", "intermediate_size"),
        intermediate_size=read.integer("intermediate_size"),
        moe_layers=tuple(range(read.integer("num_hidden_layers"))),
        fp8_block=_fp8_block(read),
        eos_token_ids=tuple(dict.fromkeys(ends)),
        bos_token_id=next(iter(read.integers("bos_token_id")), None),
        torch_dtype=str(read.raw.get("dtype") or read.raw.get("torch_dtype") or "bfloat16"),
        generation_defaults={
            key: float(generation[key]) for key in _GENERATION_KEYS if isinstance(generation.get(key), int | float)
        },
    )


def _fp8_block(read: ConfigReader) -> tuple[int, int] | None:
    """Rows and columns that share a scale, where the weights are in FP8."""
    quantised = read.raw.get("quantization_config")
    if not isinstance(quantised, Mapping) or quantised.get("quant_method") != "fp8":
        return None
    block = quantised.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
        raise CheckpointError(
            read.where, f"weight_block_size is {block!r}", "supported: FP8 with a scale per block of [rows, columns]"
        )
    return block[0], block[1]


def common_json(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """Return the ``config.json`` that ``common_config`` reads; it reads in transformers 4 and 5."""
    block = list(config.fp8_block or ())
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": block}
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope.theta,
        "rope_parameters": config.rope.to_json(),
        "rms_norm_eps": config.rms_norm_eps,
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.top_k,
        "norm_topk_prob": config.gate.normalise,
        "moe_intermediate_size": config.moe_intermediate_size,
        "intermediate_size": config.intermediate_size,
        "eos_token_id": list(config.eos_token_ids) or None,
        "bos_token_id": config.bos_token_id,
        "torch_dtype": config.torch_dtype,
        **({"quantization_config": fp8} if block else {}),
    }


def refuse_unsupported(read: ConfigReader, quantisations: tuple[str, ...] = ()) -> None:
    """Refuse what no block here computes; ``quantisations`` are the values of ``quant_method`` that can be read.

    Raises:
        CheckpointError: naming the key and what is supported.
    """
    if read.raw.get("hidden_act", "silu") != "silu":
        raise read.refuse("hidden_act", "", "silu")
    quantised = read.raw.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
    if quantised and method not in quantisations:
        raise read.refuse(
            "quantization_config", "", ", ".join((*quantisations, "float32, float16 and bfloat16 checkpoints"))
        )


def check_consistency(config: ModelConfig, where: str) -> None:
    """Raise CheckpointError where sizes do not fit each other."""
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            where, f"num_attention_heads {config.num_heads} is no multiple of num_key_value_heads {config.num_kv_heads}"
        )
    if config.head_dim % 2:
        raise CheckpointError(where, f"head_dim {config.head_dim} is odd, rotary embedding needs pairs")
    if config.top_k > config.num_experts:
        raise CheckpointError(where, f"num_experts_per_tok {config.top_k} exceeds num_experts {config.num_experts}")
    if not config.moe_layers:
        raise CheckpointError(where, "no layer has experts")
    gate = config.gate
    in_group = config.num_experts // gate.groups
    if config.num_experts % gate.groups or in_group < gate.group_best:
        raise CheckpointError(where, f"{config.num_experts} experts cannot be ranked in n_group {gate.groups} groups")
    if gate.top_groups > gate.groups or config.top_k > gate.top_groups * in_group:
        raise CheckpointError(
            where,
            f"topk_group {gate.top_groups} of n_group {gate.groups} leaves no {config.top_k} of {config.num_experts} "
            "experts to choose",
        )


def sparse_layers(read: ConfigReader) -> tuple[int, ...]:
    """Return the layers with experts, as Qwen says it: neither in ``mlp_only_layers`` nor off ``decoder_sparse_step``.

    Raises:
        CheckpointError: there is none.
    """
    dense, step = set(read.integers("mlp_only_layers")), read.integer("decoder_sparse_step", default=1)
    layers = range(read.integer("num_hidden_layers"))
    moe_layers = tuple(layer for layer in layers if layer not in dense and (layer + 1) % step == 0)
    if not moe_layers:
        raise CheckpointError(read.where, "no layer has experts (mlp_only_layers, decoder_sparse_step)")
    return moe_layers


def layers_after_dense(read: ConfigReader) -> tuple[int, ...]:
    """Return the layers with experts, as DeepSeek says it: all but the first ``first_k_dense_replace``.

    Raises:
        CheckpointError: there is none.
    """
    first, layers = read.integer("first_k_dense_replace", default=0, minimum=0), read.integer("num_hidden_layers")
    if first >= layers:
        raise CheckpointError(read.where, f"no layer has experts (first_k_dense_replace {first} of {layers} layers)")
    return tuple(range(first, layers))

"""``DecoderFamily``: module names as transformers gives them to most decoders; a family overrides what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from janus.model.config import ModelConfig
from janus.model.families.base import (
    AttentionSpec,
    FusedExpertsSpec,
    MlpSpec,
    ModelSpec,
    RouterSpec,
    SharedExpertSpec,
    TensorSpec,
)
from janus.model.families.common import check_consistency, common_config, common_json, refuse_unsupported
from janus.model.families.reader import ConfigReader


class DecoderFamily:
    """Implements ``Family`` for grouped-query attention and experts under ``mlp``; see there for the methods."""

    #: ``model_type`` and the first of ``architectures`` in ``config.json``.
    model_type: ClassVar[str]
    architecture: ClassVar[str]
    #: What transformers' config class assumes where ``config.json`` is silent.
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: Values of ``quant_method`` whose tensors can be read.
    quantisations: ClassVar[tuple[str, ...]] = ()
    #: With ``attention_bias``: whether the output projection has one too.
    output_bias: ClassVar[bool] = True
    #: Where a layer's router and experts are, and what an expert's gate, up and down projections are called.
    experts_module: ClassVar[str] = "mlp"
    expert_names: ClassVar[tuple[str, str, str]] = ("gate_proj", "up_proj", "down_proj")
    always_fused: ClassVar[bool] = False
    #: Where the shared expert of a layer is, in ``experts_module``.
    shared_module: ClassVar[str] = "shared_experts"

    # -- what a family says of its config ------------------------------------------------------------------------

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """Return ``config``, as ``common_config`` reads it, with what this family spells or does its own way.

        Raises:
            CheckpointError: a feature is not supported, or a value out of range.
        """
        return config

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """Return the keys that ``refine`` reads; None removes one of ``common_json``."""
        return {}

    # -- Family --------------------------------------------------------------------------------------------------

    def parse_config(self, raw: Mapping[str, Any], generation: Mapping[str, Any], where: str) -> ModelConfig:
        """See ``Family.parse_config``."""
        read = ConfigReader(raw, where, self.defaults)
        refuse_unsupported(read, self.quantisations)
        config = self.refine(common_config(self.model_type, read, generation), read)
        check_consistency(config, where)
        return config

    def to_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``Family.to_json``."""
        own = self.own_json(config)
        raw = common_json(config, self.architecture) | own
        return {key: value for key, value in raw.items() if value is not None or key not in own}

    def model(self, config: ModelConfig) -> ModelSpec:
        """See ``Family.model``."""
        table = (config.vocab_size, config.hidden_size)
        return ModelSpec(
            embedding=TensorSpec("model.embed_tokens.weight", table),
            final_norm=TensorSpec("model.norm.weight", (config.hidden_size,)),
            lm_head=None if config.tie_word_embeddings else TensorSpec("lm_head.weight", table),
        )

    def attention(self, config: ModelConfig, layer: int) -> AttentionSpec:
        """See ``Family.attention``: norms per head where ``qk_norm`` says so."""
        hidden, head = config.hidden_size, config.head_dim
        q_rows, kv_rows = config.num_heads * head, config.num_kv_heads * head
        prefix = f"model.layers.{layer}"

        def tensor(name: str, *shape: int) -> TensorSpec:
            return TensorSpec(f"{prefix}.{name}", shape)

        def bias(name: str, rows: int) -> TensorSpec | None:
            return tensor(f"self_attn.{name}_proj.bias", rows) if config.attention_bias else None

        return AttentionSpec(
            input_norm=tensor("input_layernorm.weight", hidden),
            post_attention_norm=tensor("post_attention_layernorm.weight", hidden),
            q=tensor("self_attn.q_proj.weight", q_rows, hidden),
            k=tensor("self_attn.k_proj.weight", kv_rows, hidden),
            v=tensor("self_attn.v_proj.weight", kv_rows, hidden),
            o=tensor("self_attn.o_proj.weight", hidden, q_rows),
            q_norm=tensor("self_attn.q_norm.weight", head) if config.qk_norm else None,
            k_norm=tensor("self_attn.k_norm.weight", head) if config.qk_norm else None,
            q_bias=bias("q", q_rows),
            k_bias=bias("k", kv_rows),
            v_bias=bias("v", kv_rows),
            o_bias=bias("o", hidden) if self.output_bias else None,
        )

    def dense_mlp(self, config: ModelConfig, layer: int) -> MlpSpec:
        """See ``Family.dense_mlp``."""
        return _mlp(f"model.layers.{layer}.mlp", config.hidden_size, config.intermediate_size)

    def shared_expert(self, config: ModelConfig, layer: int) -> SharedExpertSpec:
        """See ``Family.shared_expert``: a gate has the module's name and ``_gate``."""
        prefix = f"{self._experts(layer)}.{self.shared_module}"
        gate = TensorSpec(f"{prefix}_gate.weight", (1, config.hidden_size)) if config.shared_expert_gate else None
        return SharedExpertSpec(_mlp(prefix, config.hidden_size, config.shared_intermediate_size), gate)

    def router(self, config: ModelConfig, layer: int) -> RouterSpec:
        """See ``Family.router``."""
        prefix, experts = f"{self._experts(layer)}.gate", config.num_experts
        correction = TensorSpec(f"{prefix}.e_score_correction_bias", (experts,), full_precision=True)
        return RouterSpec(
            weight=TensorSpec(f"{prefix}.weight", (experts, config.hidden_size)),
            bias=TensorSpec(f"{prefix}.bias", (experts,)) if config.gate.logit_bias else None,
            correction=correction if config.gate.correction_bias else None,
        )

    def expert(self, config: ModelConfig, layer: int, expert: int) -> MlpSpec:
        """See ``Family.expert``."""
        prefix = f"{self._experts(layer)}.experts.{expert}"
        return _mlp(prefix, config.hidden_size, config.moe_intermediate_size, self.expert_names)

    def fused_experts(self, config: ModelConfig, layer: int) -> FusedExpertsSpec | None:
        """See ``Family.fused_experts``: the names that the modules of transformers 5 have in memory."""
        prefix = f"model.layers.{layer}.mlp.experts"
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        return FusedExpertsSpec(
            gate_up=TensorSpec(f"{prefix}.gate_up_proj", (experts, 2 * width, hidden)),
            down=TensorSpec(f"{prefix}.down_proj", (experts, hidden, width)),
        )

    def _experts(self, layer: int) -> str:
        return f"model.layers.{layer}.{self.experts_module}"


def _mlp(
    prefix: str, hidden: int, width: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> MlpSpec:
    gate, up, down = (f"{prefix}.{name}.weight" for name in names)
    return MlpSpec(
        gate=TensorSpec(gate, (width, hidden)),
        up=TensorSpec(up, (width, hidden)),
        down=TensorSpec(down, (hidden, width)),
    )

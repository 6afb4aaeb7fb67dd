"""What a model asks of the hardware: parameters, bytes and operations, by role."""

from __future__ import annotations

from dataclasses import dataclass

from janus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Counts of one model. Parameters and elements are numbers; bytes follow from the widths at the end.

    Raises:
        ConfigError: a count that no MoE model has.
    """

    name: str
    #: Width of the activations, H.
    hidden: int
    layers: int
    #: Layers with routed experts, experts in each (E), and experts per token (k).
    moe_layers: int
    experts: int
    top_k: int
    #: One routed expert of one layer.
    expert_params: int
    #: Attention of one layer with its norms; the mean where layers differ.
    attention_params: int
    #: Shared experts and router of one MoE layer: they are on the attention side.
    shared_params: int
    #: MLP of a layer without routed experts; 0 where every layer has them.
    dense_params: int
    #: The embedding table, of which a step reads a few rows, and the output matrix, which it reads whole.
    embedding_params: int
    head_params: int
    #: Elements that the KV cache keeps per token and layer (the latent ones for MLA).
    kv_elements: int
    #: Floating-point operations per token computed, token of its context and layer: scores and weighted sum.
    context_flops: int
    #: Devices that a layer's KV cache can be divided among: its KV heads; 1 for a latent; 0 = any number.
    kv_parts: int = 0
    #: Bytes of a parameter outside and inside the routed experts, of an element of the KV cache, of an activation.
    weight_width: float = 2.0
    expert_width: float = 2.0
    kv_width: float = 2.0
    activation_width: float = 2.0

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "moe_layers", "experts", "top_k", "expert_params", "kv_elements"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"is {getattr(self, name)}", "give at least 1")
        if self.moe_layers > self.layers:
            raise ConfigError("moe_layers", f"is {self.moe_layers} of {self.layers} layers", "give at most all layers")
        if self.top_k > self.experts:
            raise ConfigError("top_k", f"is {self.top_k} of {self.experts} experts", "give at most all experts")

    @property
    def expert_bytes(self) -> float:
        """Bytes of one replica: one expert of one layer."""
        return self.expert_params * self.expert_width

    @property
    def attention_side_params(self) -> int:
        """Parameters that every attention instance holds (all tensor-parallel parts of it together)."""
        dense = (self.layers - self.moe_layers) * self.dense_params
        layers = self.layers * self.attention_params + self.moe_layers * self.shared_params + dense
        return layers + self.embedding_params + self.head_params

    @property
    def attention_side_bytes(self) -> float:
        """Their bytes."""
        return self.attention_side_params * self.weight_width

    @property
    def expert_side_bytes(self) -> float:
        """Bytes of one replica of every expert of every layer."""
        return self.moe_layers * self.experts * self.expert_bytes

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes that the KV cache keeps of one token, all layers."""
        return self.layers * self.kv_elements * self.kv_width

    def kv_divided(self, devices: int) -> int:
        """Return among how many of the ``devices`` of a tensor-parallel instance its KV cache is divided.

        The others repeat it: KV heads are not split, and every head of latent attention reads the whole latent.
        """
        return min(devices, self.kv_parts) if self.kv_parts else devices

    @property
    def row_bytes(self) -> float:
        """Bytes of one token's activations."""
        return self.hidden * self.activation_width

"""What is left of the attention half, in plain torch: any device and dtype, and the oracle of the CPU kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from janus.model.batch import StepBatch
from janus.model.gate import TorchGates
from janus.model.weights import DenseMlpWeights, WeightReader


class TorchMath:
    """See ``AttentionModel`` for what the methods do."""

    def __init__(self, reader: WeightReader, embedding: torch.Tensor) -> None:
        config = reader.config
        self._config = config
        self._final_norm = reader.final_norm()
        lm_head = reader.lm_head()
        self._lm_head = embedding if lm_head is None else lm_head
        self._gates = TorchGates(config, {layer: reader.router(layer) for layer in config.moe_layers})
        self._dense = {layer: reader.dense_mlp(layer) for layer in config.dense_layers}
        shared = {layer: reader.shared_expert(layer) for layer in config.moe_layers}
        self._shared = {layer: weights for layer, weights in shared.items() if weights is not None}

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate weights and expert ids."""
        return self._gates.route(layer, x)

    def dense_mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Gated MLP."""
        return _gated_mlp(x, self._dense[layer])

    def shared_expert(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Gated MLP, times the sigmoid of its own gate where it has one."""
        weights = self._shared[layer]
        y = _gated_mlp(x, weights.mlp)
        if weights.gate is None:
            return y
        return (torch.sigmoid(x.float() @ weights.gate)[:, None] * y).to(x.dtype)

    def logits(self, h: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        """f32 logits of the sampled rows."""
        rows = h.index_select(0, batch.sample_rows)
        return F.linear(self._norm(rows, self._final_norm), self._lm_head).float()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self._config.rms_norm_eps)


def _gated_mlp(x: torch.Tensor, weights: DenseMlpWeights) -> torch.Tensor:
    gate, up = F.linear(x, weights.gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, weights.down)

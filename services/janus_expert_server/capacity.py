"""How many replicas fit into the memory that is free when an expert instance starts."""

from __future__ import annotations

import psutil
import torch

from janus.model.config import ModelConfig

#: Share of the free memory that replicas may take: on a CPU other processes live there too.
_CPU_SHARE, _GPU_SHARE = 0.5, 0.8


def replica_capacity(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Return the replicas per MoE layer that free memory holds now; 1 at least, and every expert once at most."""
    per_slot = config.expert_parameters * dtype.itemsize * config.num_moe_layers
    if device.type == "cuda":
        room = _GPU_SHARE * torch.cuda.mem_get_info(device)[0]
    else:
        room = _CPU_SHARE * psutil.virtual_memory().available
    return max(1, min(config.num_experts, int(room // per_slot)))

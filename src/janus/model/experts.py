"""``ExpertBank``: experts of all MoE layers in numbered slots, and the grouped computation over them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig


class ExpertBank:
    """``slots`` places per MoE layer, each holding one expert or nothing.

    ``forward`` groups rows by expert, so that each expert's weights are read once however many rows want it.
    ``slot_expert[layer][slot]`` is the expert in a slot, -1 if it is empty. Loading a slot while ``forward`` runs on
    the same layer is the caller's mistake: an epoch must not use a slot before it is loaded.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_moe_layers: int,
        slots: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.slots = slots
        self.dtype = dtype
        self.device = torch.device(device)
        self.slot_expert = [[-1] * slots for _ in range(num_moe_layers)]
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self._gate_up = [
            torch.zeros(slots, 2 * width, hidden, dtype=dtype, device=device) for _ in range(num_moe_layers)
        ]
        self._down = [torch.zeros(slots, hidden, width, dtype=dtype, device=device) for _ in range(num_moe_layers)]

    def load(self, checkpoint: Checkpoint, moe_layer: int, slot: int, expert: int) -> None:
        """Read ``expert`` of MoE layer ``moe_layer`` (an index into ``config.moe_layers``) into ``slot``.

        Raises:
            CheckpointError: its tensors cannot be read; the slot is then empty.
        """
        self.unload(moe_layer, slot)
        gate_up, down = checkpoint.read_expert(self.config.moe_layers[moe_layer], expert, self.dtype)
        self._gate_up[moe_layer][slot].copy_(gate_up)
        self._down[moe_layer][slot].copy_(down)
        self.slot_expert[moe_layer][slot] = expert

    def unload(self, moe_layer: int, slot: int) -> None:
        """Empty ``slot``."""
        self.slot_expert[moe_layer][slot] = -1

    @staticmethod
    def activated(slots_NK: torch.Tensor) -> int:
        """How many distinct slots a dispatch touches (a_g of the paper)."""
        distinct = torch.unique(slots_NK)
        return int((distinct >= 0).sum())

    def forward(
        self,
        moe_layer: int,
        x_NH: torch.Tensor,
        slots_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the gate-weighted sum over this bank's experts, [N, H] in the dtype of ``x``.

        Args:
            moe_layer: which MoE layer.
            x_NH: inputs, [N, H].
            slots_NK: int32 [N, K], the slot of each chosen expert, -1 for one that is not here.
            weights_NK: f32 [N, K], gate weights.
            out: written and returned if given.
        """
        total = torch.zeros(x_NH.shape, dtype=torch.float32, device=x_NH.device)
        for slot in torch.unique(slots_NK).tolist():
            if slot < 0:
                continue
            rows, column = torch.where(slots_NK == slot)
            gate, up = F.linear(x_NH[rows], self._gate_up[moe_layer][slot]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, self._down[moe_layer][slot]).float()
            total.index_add_(0, rows, y * weights_NK[rows, column, None])
        if out is None:
            return total.to(x_NH.dtype)
        return out.copy_(total)

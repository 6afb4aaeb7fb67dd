"""``ExpertBank``: experts of all MoE layers in numbered slots, and the grouped computation over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from janus.errors import ReplicaMissing
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.expert_weights import ExpertWeights
from janus.model.kernels import load_library
from janus.model.slot_weights import CpuSlots, TorchSlots

#: In ``slot_expert``: no expert.
EMPTY = -1


class ExpertBank:
    """``slots`` places per MoE layer, each holding one expert or nothing.

    ``forward`` groups rows by expert, so that each expert's weights are read once however many rows want it.
    ``slot_expert[layer][slot]`` is the expert in a slot, -1 if it is empty. A slot must not be loaded or unloaded while
    ``forward`` runs on its layer and uses it.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_moe_layers: int,
        slots: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        *,
        kernels: bool = True,
    ) -> None:
        self.config = config
        self.slots = slots
        self.dtype = dtype
        self.device = torch.device(device)
        self.slot_expert = [[EMPTY] * slots for _ in range(num_moe_layers)]
        library = load_library() if kernels and CpuSlots.supports(config, dtype, self.device) else None
        self._layers: list[CpuSlots] | list[TorchSlots]
        if library is None:
            self._layers = [TorchSlots(config, slots, dtype, self.device) for _ in range(num_moe_layers)]
        else:
            self._layers = [CpuSlots(library, config, slots, dtype) for _ in range(num_moe_layers)]

    def load(self, checkpoint: Checkpoint, moe_layer: int, slot: int, expert: int) -> None:
        """Read ``expert`` of MoE layer ``moe_layer`` (an index into ``config.moe_layers``), and only it, into ``slot``.

        Raises:
            CheckpointError: its tensors cannot be read; the slot is then empty.
        """
        self.unload(moe_layer, slot)
        self.read(checkpoint, moe_layer, slot, expert)
        self.hold(moe_layer, slot, expert)

    # -- loading while others compute: a free slot is filled, in any thread, and then held -------------------------

    def read(self, checkpoint: Checkpoint, moe_layer: int, slot: int, expert: int) -> None:
        """Fill the free ``slot`` from ``checkpoint``; the slot stays empty until ``hold``.

        Raises:
            CheckpointError: the expert's tensors cannot be read.
        """
        self.fill(moe_layer, slot, self.fetch(checkpoint, moe_layer, expert))

    def fetch(self, checkpoint: Checkpoint, moe_layer: int, expert: int) -> ExpertWeights:
        """The first half of ``read``, which touches no slot: return what is filled in. Raises as ``read``."""
        return checkpoint.read_expert(self.config.moe_layers[moe_layer], expert, self.dtype)

    def fill(self, moe_layer: int, slot: int, weights: ExpertWeights) -> None:
        """The other half."""
        self._layers[moe_layer].fill(slot, weights)

    def room(self, moe_layer: int, slot: int) -> torch.Tensor:
        """Return the memory of the free ``slot``: uint8[expert_nbytes] on the bank's device, to be filled."""
        return self._layers[moe_layer].room(slot)

    def hold(self, moe_layer: int, slot: int, expert: int) -> None:
        """Use ``expert``, which was filled into ``slot``, from now on. Only where no ``forward`` runs on the layer."""
        self._layers[moe_layer].hold(slot)
        self.slot_expert[moe_layer][slot] = expert

    def unload(self, moe_layer: int, slot: int) -> None:
        """Empty ``slot`` and give its memory back; nothing happens if it is empty."""
        self.release(moe_layer, slot)
        self.discard(moe_layer, slot)

    def release(self, moe_layer: int, slot: int) -> None:
        """Empty ``slot``. Only where no ``forward`` runs on the layer."""
        self.slot_expert[moe_layer][slot] = EMPTY
        self._layers[moe_layer].release(slot)

    def discard(self, moe_layer: int, slot: int) -> None:
        """Give the memory of the free ``slot`` back, in any thread: large experts take a while."""
        self._layers[moe_layer].discard(slot)

    def grow(self, slots: int) -> None:
        """Have ``slots`` slots per MoE layer, which are more than so far; what is held stays where it is."""
        for layer in self._layers:
            layer.grow(slots)
        for experts in self.slot_expert:
            experts.extend([EMPTY] * (slots - self.slots))
        self.slots = slots

    def weights(self, moe_layer: int, expert: int) -> torch.Tensor | None:
        """Return the bytes of ``expert``, uint8[expert_nbytes] in ``layout``; ``None`` if it is not held."""
        experts = self.slot_expert[moe_layer]
        return self._layers[moe_layer].weights(experts.index(expert)) if expert in experts else None

    @property
    def layout(self) -> str:
        """How an expert lies in its bytes: two banks with the same layout may copy experts from each other."""
        return self._layers[0].layout

    @property
    def expert_nbytes(self) -> int:
        """Bytes of one expert."""
        return self._layers[0].nbytes

    @property
    def resident_nbytes(self) -> int:
        """Bytes of all experts that are held."""
        return self.expert_nbytes * sum(self.slots - experts.count(EMPTY) for experts in self.slot_expert)

    @staticmethod
    def activated(slots_NK: torch.Tensor) -> int:
        """How many distinct slots a dispatch touches (a_g of the paper)."""
        # Counting is far faster than torch.unique, which sorts; slot -1 is counted in bin 0 and left out.
        return int(torch.count_nonzero(torch.bincount(slots_NK.flatten() + 1)[1:]))

    def forward(
        self,
        moe_layer: int,
        x_NH: torch.Tensor,
        slots_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the gate-weighted sum over this bank's experts, [N, H] in the dtype of ``x``; summed in f32.

        Args:
            moe_layer: which MoE layer.
            x_NH: inputs [N, H] in the bank's dtype.
            slots_NK: int32 [N, K], the slot of each chosen expert, -1 for one that is not here.
            weights_NK: f32 [N, K], gate weights.
            out: contiguous [N, H] that is written and returned if given.

        Raises:
            ReplicaMissing: a slot is empty or out of range.
            ValueError: a shape or dtype is wrong.
        """
        self._check(x_NH, slots_NK, weights_NK)
        if out is None:
            out = torch.empty_like(x_NH, memory_format=torch.contiguous_format)
        elif out.shape != x_NH.shape or out.dtype != x_NH.dtype or not out.is_contiguous():
            raise ValueError(
                f"out is {out.dtype} {list(out.shape)}, expected contiguous {x_NH.dtype} {list(x_NH.shape)}"
            )
        missing = self._layers[moe_layer].forward(
            x_NH.contiguous(), slots_NK.contiguous(), weights_NK.contiguous(), out
        )
        if missing is not None:
            raise ReplicaMissing(f"slot {missing} of MoE layer {moe_layer} holds no expert (of {self.slots} slots)")
        return out

    @property
    def takes_addresses(self) -> bool:
        """Whether ``forward_at`` works here: on a CPU with the kernels."""
        return isinstance(self._layers[0], CpuSlots)

    def forward_at(self, moe_layer: int, rows: int, k: int, *, x: int, slots: int, weights: int, out: int) -> None:
        """As ``forward`` on memory that is already laid out: the token path, which has checked what it received.

        Args:
            moe_layer: which MoE layer.
            rows: N.
            k: K.
            x: address of [N, H] in the bank's dtype; two bytes past it are readable.
            slots: address of int32 [N, K].
            weights: address of f32 [N, K].
            out: address of [N, H] in the bank's dtype, which is written.

        Raises:
            ReplicaMissing: a slot is empty or out of range.
        """
        layer = self._layers[moe_layer]
        assert isinstance(layer, CpuSlots)
        missing = layer.forward_at(rows, k, x=x, slots=slots, weights=weights, out=out)
        if missing is not None:
            raise ReplicaMissing(f"slot {missing} of MoE layer {moe_layer} holds no expert (of {self.slots} slots)")

    def forward_joint(
        self,
        moe_layer: int,
        counts: Sequence[int],
        k: int,
        *,
        x: Sequence[int],
        slots: Sequence[int],
        weights: Sequence[int],
        out: Sequence[int],
    ) -> None:
        """As ``forward_at`` for several dispatches, each in its own memory: one read of the weights serves them all.

        Raises:
            ReplicaMissing: a slot is empty or out of range.
        """
        layer = self._layers[moe_layer]
        assert isinstance(layer, CpuSlots)
        missing = layer.forward_joint(counts, k, x=x, slots=slots, weights=weights, out=out)
        if missing is not None:
            raise ReplicaMissing(f"slot {missing} of MoE layer {moe_layer} holds no expert (of {self.slots} slots)")

    def _check(self, x_NH: torch.Tensor, slots_NK: torch.Tensor, weights_NK: torch.Tensor) -> None:
        if x_NH.dtype != self.dtype or x_NH.ndim != 2 or x_NH.shape[1] != self.config.hidden_size:
            raise ValueError(
                f"x is {x_NH.dtype} {list(x_NH.shape)}, expected {self.dtype} [N, {self.config.hidden_size}]"
            )
        if slots_NK.dtype != torch.int32 or slots_NK.ndim != 2 or len(slots_NK) != len(x_NH):
            raise ValueError(f"slots are {slots_NK.dtype} {list(slots_NK.shape)}, expected int32 [{len(x_NH)}, K]")
        if weights_NK.dtype != torch.float32 or weights_NK.shape != slots_NK.shape:
            raise ValueError(
                f"weights are {weights_NK.dtype} {list(weights_NK.shape)}, expected f32 {list(slots_NK.shape)}"
            )

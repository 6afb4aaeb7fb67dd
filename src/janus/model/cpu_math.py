"""What is left of the attention half, on the CPU kernels, in bf16 or f32."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref

import torch

from janus.model.batch import StepBatch
from janus.model.gate import CpuGates
from janus.model.kernels.library import DTYPES, PANEL, ExpertShape, Library
from janus.model.memory import Arena
from janus.model.weights import DenseMlpWeights, WeightReader

#: About so much of the output matrix is read before it is packed: what the caches hold.
_BLOCK_BYTES = 4 << 20


class CpuMath:
    """See ``AttentionModel`` for what the methods do."""

    def __init__(self, library: Library, reader: WeightReader, embedding: Callable[[], torch.Tensor]) -> None:
        """``embedding`` waits for it; it is asked for only where the output matrix is tied to it."""
        config = reader.config
        self._library = library
        self._config = config
        self._dtype = DTYPES[reader.dtype]
        self._torch_dtype = reader.dtype
        self._arena = Arena()
        self._alive: list[torch.Tensor] = []
        self._final_norm = self._f32(reader.final_norm())
        self._lm_head = self._packed_lm_head(reader, embedding)
        routers = {layer: reader.router(layer) for layer in config.moe_layers}
        self._gates = CpuGates(library, config, reader.dtype, routers, self._arena)
        self._dense = {layer: self._dense_mlp(reader.dense_mlp(layer)) for layer in config.dense_layers}
        #: Packed weights, and the gate or a null pointer.
        self._shared = {
            layer: (self._dense_mlp(weights.mlp), None if weights.gate is None else self._f32(weights.gate))
            for layer in config.moe_layers
            if (weights := reader.shared_expert(layer)) is not None
        }

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate weights and expert ids."""
        return self._gates.route(layer, x)

    def dense_mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Gated MLP."""
        return self._mlp(x, self._config.intermediate_size, self._dense[layer], None)

    def shared_expert(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Gated MLP, times the sigmoid of its own gate where it has one."""
        return self._mlp(x, self._config.shared_intermediate_size, *self._shared[layer])

    def _mlp(self, x: torch.Tensor, width: int, packed: int, gate: int | None) -> torch.Tensor:
        x = self._input(x)
        out = torch.empty_like(x)
        self._library.dense_mlp(
            self._dtype, len(x), self._config.hidden_size, width, x.data_ptr(), packed, gate, out.data_ptr()
        )
        return out

    def logits(self, h: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        """f32 logits of the sampled rows."""
        config, h = self._config, self._input(h)
        rows = batch.sample_rows_np
        out = torch.empty((len(rows), config.vocab_size), dtype=torch.float32)
        self._library.head(
            self._dtype,
            len(rows),
            config.hidden_size,
            config.vocab_size,
            config.rms_norm_eps,
            h.data_ptr(),
            rows.ctypes.data,
            self._final_norm,
            self._lm_head,
            out.data_ptr(),
        )
        return out

    def _input(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self._torch_dtype or x.shape[-1] != self._config.hidden_size:
            raise ValueError(f"activations are {x.dtype} {list(x.shape)}, expected {self._torch_dtype} [T, hidden]")
        return x.contiguous()

    def _keep(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()

    def _packed_lm_head(self, reader: WeightReader, embedding: Callable[[], torch.Tensor]) -> int:
        """The largest matrix of many models is never there as a whole but packed."""
        rows, columns = self._config.vocab_size, self._config.hidden_size
        each = max(1, _BLOCK_BYTES // (columns * self._torch_dtype.itemsize * PANEL)) * PANEL
        blocks = reader.lm_head_blocks(each)
        if blocks is None:
            return self._keep(self._library.pack(embedding(), self._arena))
        return self._keep(self._library.pack_blocks(blocks, rows, columns, self._torch_dtype, self._arena))

    def _f32(self, tensor: torch.Tensor) -> int:
        return self._keep(tensor.float().contiguous())

    def _dense_mlp(self, weights: DenseMlpWeights) -> int:
        shape = ExpertShape(dtype=self._dtype, hidden=self._config.hidden_size, width=weights.down.shape[1])
        packed = self._arena.take(self._library.expert_bytes(byref(shape)))
        gate_up, down = weights.gate_up.data_ptr(), weights.down.data_ptr()
        self._library.pack_expert(byref(shape), gate_up, down, None, None, packed.data_ptr())
        return self._keep(packed)

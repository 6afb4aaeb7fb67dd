"""``AttentionModel``: everything of a model but its experts, cut at each MoE layer so that the caller can dispatch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

from janus.model import gate
from janus.model.attention.contract import attention_layers
from janus.model.batch import StepBatch
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.cpu_math import CpuMath
from janus.model.kernels import load_library
from janus.model.kv_cache import PagedKVCache
from janus.model.rope import RopeTable
from janus.model.torch_math import TorchMath
from janus.model.weights import WeightReader

__all__ = ["AttentionModel", "StepBatch"]


class AttentionModel:
    """The attention half of a model. One step of all layers::

        h = model.embed(batch)
        for layer in range(config.num_layers):
            h, x = model.attention(layer, h, batch, kv)
            if layer in config.moe_index:
                weights_TK, ids_TK = model.route(layer, x)
                if model.has_shared_expert:
                    h = h + model.shared_expert(layer, x)
                h = h + experts(config.moe_index[layer], x, ids_TK, weights_TK)
            else:
                h = h + model.dense_mlp(layer, x)
        logits_RV = model.logits(h, batch)

    Activations are in the serving dtype, [T, H]. Whatever kind of attention the model has, it looks the same from here.
    On the CPU kernels a row's numbers are the same, bit for bit, whatever else is in the batch and however its prompt
    was cut into chunks. Methods are for one caller at a time.
    """

    def __init__(self, reader: WeightReader, *, kernels: bool = True) -> None:
        config = reader.config
        self.config = config
        self.dtype = reader.dtype
        self.device = reader.device
        self._rope = RopeTable(config.rope, config.rotary_dim, config.max_position_embeddings, reader.device)
        library = load_library() if kernels and gate.supported(config, self.dtype, self.device) else None
        self._math: CpuMath | TorchMath
        if library is None:
            self._embedding = reader.embedding()
            self._attention = attention_layers(reader, library)
            self._math = TorchMath(reader, self._embedding)
            return
        # Half of the weights is read while the other half is packed: a start is little else.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights") as thread:
            embedding = thread.submit(reader.embedding)
            attention = thread.submit(attention_layers, reader, library)
            self._math = CpuMath(library, reader, embedding.result)
            self._embedding, self._attention = embedding.result(), attention.result()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        config: ModelConfig,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        *,
        kernels: bool = True,
    ) -> AttentionModel:
        """Read the attention half of ``checkpoint``; no expert tensor is touched.

        Args:
            checkpoint: where from.
            config: its config.
            dtype: serving dtype, that of weights and activations.
            device: where to compute.
            kernels: False keeps to plain torch even where the CPU kernels would run.

        Raises:
            CheckpointError: a tensor cannot be read.
        """
        return cls(WeightReader(checkpoint, config, dtype, torch.device(device)), kernels=kernels)

    @property
    def uses_kernels(self) -> bool:
        """Whether the CPU kernels compute, rather than torch."""
        return isinstance(self._math, CpuMath)

    def embed(self, batch: StepBatch) -> torch.Tensor:
        """Return the embeddings [T, H] and prepare ``batch`` for the layers."""
        cos_sin = self._rope.rows(batch.positions, int(batch.positions_np.max(initial=0)))
        self._attention.prepare(batch, cos_sin)
        return F.embedding(batch.token_ids, self._embedding)

    def attention(
        self, layer: int, h: torch.Tensor, batch: StepBatch, kv: PagedKVCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run norm, attention and residual of ``layer`` on the residual stream ``h`` [T, H]; writes the KV cache.

        Returns:
            The residual stream after attention, and the normed input of the MLP or experts, both [T, H].
        """
        return self._attention.attention(layer, h, batch, kv)

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate of MoE layer ``layer`` (absolute index); see ``Gates.route``.

        Returns:
            weights f32 [T, K] and expert ids int32 [T, K], the best choice first.
        """
        return self._math.route(layer, x)

    @property
    def has_shared_expert(self) -> bool:
        """Whether MoE layers have a shared expert, which every row goes through beside those that it chooses."""
        return self.config.shared_intermediate_size > 0

    def shared_expert(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Run the shared expert of MoE layer ``layer`` (absolute index), [T, H] in and out."""
        return self._math.shared_expert(layer, x)

    def dense_mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Run the MLP of a layer without experts, [T, H] in and out."""
        return self._math.dense_mlp(layer, x)

    def logits(self, h: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        """Return f32 logits [R, vocab] of the rows in ``batch.sample_rows``."""
        return self._math.logits(h, batch)

"""``StepBatch``: the rows of one forward step, decode rows and prefill chunks mixed.

Shape suffixes in this package: T rows (tokens) of a step, S sequences, R sampled rows, H hidden, D head size,
N rows of a dispatch, K experts per token, E experts, B blocks of the longest table.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.integer]


class StepBatch:
    """What the attention model needs to know of one step. Sequence ``s`` owns rows ``query_start[s]:query_start[s+1]``.

    Args:
        token_ids: [T] input token of each row.
        positions: [T] position of each row in its sequence.
        slot_mapping: [T] KV slot that each row writes, ``block * block_size + offset``.
        query_start: [S + 1] first row of each sequence; ends with T.
        context_len: [S] tokens of each sequence that are in the KV cache after this step.
        block_tables: [S, B] block ids of each sequence in order, padded with any valid id (0).
        sample_rows: [R] rows whose logits are wanted.
        device: where the tensors go.
    """

    def __init__(
        self,
        *,
        token_ids: IntArray,
        positions: IntArray,
        slot_mapping: IntArray,
        query_start: IntArray,
        context_len: IntArray,
        block_tables: IntArray,
        sample_rows: IntArray,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.token_ids_np = np.ascontiguousarray(token_ids, dtype=np.int64)
        self.positions_np = np.ascontiguousarray(positions, dtype=np.int64)
        self.slot_mapping_np = np.ascontiguousarray(slot_mapping, dtype=np.int64)
        self.query_start_np = np.ascontiguousarray(query_start, dtype=np.int32)
        self.context_len_np = np.ascontiguousarray(context_len, dtype=np.int32)
        self.block_tables_np = np.ascontiguousarray(block_tables, dtype=np.int32)
        self.sample_rows_np = np.ascontiguousarray(sample_rows, dtype=np.int64)
        #: What ``AttentionModel.embed`` computed once for all layers.
        self.prepared: object = None

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids_np)

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.context_len_np)

    @cached_property
    def token_ids(self) -> torch.Tensor:
        """int64 [T] on the device."""
        return self._tensor(self.token_ids_np)

    @cached_property
    def positions(self) -> torch.Tensor:
        """int64 [T] on the device."""
        return self._tensor(self.positions_np)

    @cached_property
    def slot_mapping(self) -> torch.Tensor:
        """int64 [T] on the device."""
        return self._tensor(self.slot_mapping_np)

    @cached_property
    def sample_rows(self) -> torch.Tensor:
        """int64 [R] on the device."""
        return self._tensor(self.sample_rows_np)

    @cached_property
    def block_tables(self) -> torch.Tensor:
        """int64 [S, B] on the device."""
        return self._tensor(self.block_tables_np.astype(np.int64))

    @cached_property
    def query_len_np(self) -> npt.NDArray[np.int32]:
        """[S] rows of each sequence in this step."""
        return np.diff(self.query_start_np)

    @cached_property
    def decode_sequences(self) -> npt.NDArray[np.int64]:
        """Sequences with exactly one row."""
        return np.flatnonzero(self.query_len_np == 1)

    @cached_property
    def prefill_sequences(self) -> npt.NDArray[np.int64]:
        """Sequences with more than one row."""
        return np.flatnonzero(self.query_len_np > 1)

    def _tensor(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

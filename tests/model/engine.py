"""The smallest engine around the model: sequences with their blocks, stepped in any mixture of chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from janus.model.attention_model import AttentionModel
from janus.model.batch import StepBatch
from janus.model.checkpoint import Checkpoint
from janus.model.experts import ExpertBank
from janus.model.kv_cache import PagedKVCache


@dataclass
class Sequence:
    """Tokens so far, how many of them are computed, and the blocks that hold them (deliberately out of order)."""

    tokens: list[int]
    blocks: np.ndarray
    computed: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)


class Engine:
    """All experts in one bank, one KV cache."""

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype = torch.float32,
        *,
        kernels: bool = True,
        block_size: int = 16,
        num_blocks: int = 256,
    ) -> None:
        self.checkpoint = Checkpoint.open(path)
        self.config = self.checkpoint.config
        self.model = AttentionModel.load(self.checkpoint, self.config, dtype, kernels=kernels)
        self.bank = full_bank(self.checkpoint, dtype, kernels=kernels)
        self.kv = PagedKVCache(self.config, num_blocks, block_size, dtype)
        self._free = list(np.random.default_rng(0).permutation(num_blocks))

    def sequence(self, tokens: list[int], capacity: int = 256) -> Sequence:
        count = -(-capacity // self.kv.block_size)
        blocks = np.array([self._free.pop() for _ in range(count)])
        return Sequence(list(tokens), blocks)

    def release(self, sequence: Sequence) -> None:
        self._free.extend(sequence.blocks)

    @torch.inference_mode()
    def step(self, chunks: list[tuple[Sequence, int]]) -> list[torch.Tensor]:
        """Compute the next n tokens of each sequence; returns each one's logits [n, vocab]."""
        size = self.kv.block_size
        positions = [np.arange(seq.computed, seq.computed + count) for seq, count in chunks]
        slots = [seq.blocks[p // size] * size + p % size for (seq, _), p in zip(chunks, positions, strict=True)]
        tables = np.zeros((len(chunks), max(len(seq.blocks) for seq, _ in chunks)), dtype=np.int32)
        for row, (seq, _) in enumerate(chunks):
            tables[row, : len(seq.blocks)] = seq.blocks
        tokens = [seq.tokens[seq.computed : seq.computed + count] for seq, count in chunks]
        starts = np.cumsum([0, *(count for _, count in chunks)])
        batch = StepBatch(
            token_ids=np.concatenate(tokens),
            positions=np.concatenate(positions),
            slot_mapping=np.concatenate(slots),
            query_start=starts,
            context_len=np.array([seq.computed + count for seq, count in chunks]),
            block_tables=tables,
            sample_rows=np.arange(starts[-1]),
        )
        logits = self.forward(batch)
        for seq, count in chunks:
            seq.computed += count
        return list(torch.split(logits, [count for _, count in chunks]))

    def forward(self, batch: StepBatch) -> torch.Tensor:
        h = self.model.embed(batch)
        for layer in range(self.config.num_layers):
            h, x = self.model.attention(layer, h, batch, self.kv)
            if layer in self.config.moe_index:
                weights, ids = self.model.route(layer, x)
                if self.model.has_shared_expert:
                    h = h + self.model.shared_expert(layer, x)
                h = h + self.bank.forward(self.config.moe_index[layer], x, ids, weights)
            else:
                h = h + self.model.dense_mlp(layer, x)
        return self.model.logits(h, batch)

    def greedy(self, prompts: list[list[int]], new_tokens: int, chunk: int) -> list[list[int]]:
        """Generate for all prompts together; prompts enter in chunks while others already decode."""
        sequences = [self.sequence(prompt, len(prompt) + new_tokens) for prompt in prompts]
        wanted = [len(prompt) + new_tokens for prompt in prompts]
        while running := [s for s, end in zip(sequences, wanted, strict=True) if len(s.tokens) < end]:
            chunks = [(seq, min(chunk, len(seq.tokens) - seq.computed)) for seq in running]
            for (seq, _), logits in zip(chunks, self.step(chunks), strict=True):
                if seq.computed == len(seq.tokens):
                    seq.tokens.append(int(logits[-1].argmax()))
        for seq in sequences:
            self.release(seq)
        return [seq.tokens[len(prompt) :] for seq, prompt in zip(sequences, prompts, strict=True)]


def full_bank(checkpoint: Checkpoint, dtype: torch.dtype, *, kernels: bool = True) -> ExpertBank:
    """Every expert of every MoE layer, expert e in slot e."""
    config = checkpoint.config
    bank = ExpertBank(config, config.num_moe_layers, config.num_experts, dtype, kernels=kernels)
    for layer in range(config.num_moe_layers):
        for expert in range(config.num_experts):
            bank.load(checkpoint, layer, expert, expert)
    return bank

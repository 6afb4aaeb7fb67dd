"""Qwen3-MoE, written for fast training on CPU. `export.py` turns it into the Hugging Face layout.

Parameters are float32 and cast to bfloat16 for every matrix product. Experts are stacked per layer as
[experts, ...] so that one optimizer call updates all of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import CausalAttention, GroupedExperts, TiedCrossEntropy


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    vocab_size: int = 4096
    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 16
    top_k: int = 4
    expert_size: int = 128
    context: int = 512
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6


@torch.compile
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight).to(torch.bfloat16)


@torch.compile
def _norm_and_rotate(x_BLHD: Tensor, weight: Tensor, cos_LD: Tensor, sin_LD: Tensor, eps: float) -> Tensor:
    x = x_BLHD.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    low, high = x.chunk(2, dim=-1)
    rotated = torch.cat([-high, low], dim=-1)
    return (x * cos_LD[:, None] + rotated * sin_LD[:, None]).to(torch.bfloat16)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Parameter(torch.empty(queries, config.hidden_size))
        self.k_proj = nn.Parameter(torch.empty(keys, config.hidden_size))
        self.v_proj = nn.Parameter(torch.empty(keys, config.hidden_size))
        self.o_proj = nn.Parameter(torch.empty(config.hidden_size, queries))
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))

    def forward(self, x: Tensor, batch: int, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """x [batch * length, hidden] in bfloat16, and the result likewise."""
        c = self.config
        length, group = len(x) // batch, c.heads // c.kv_heads
        qkv_weight = torch.cat([self.q_proj, self.k_proj, self.v_proj]).to(x.dtype)
        heads = (x @ qkv_weight.t()).view(batch, length, c.heads + 2 * c.kv_heads, c.head_dim)
        q, k, v = heads.split([c.heads, c.kv_heads, c.kv_heads], dim=2)
        q = _norm_and_rotate(q, self.q_norm, *rope, c.norm_eps)
        k = _norm_and_rotate(k, self.k_norm, *rope, c.norm_eps)
        # The query heads that share a key/value head stand below each other: one product serves the group.
        q = q.view(batch, length, c.kv_heads, group, c.head_dim).permute(0, 2, 3, 1, 4)
        out = CausalAttention.apply(
            q.reshape(batch * c.kv_heads, group * length, c.head_dim),
            k.transpose(1, 2).reshape(batch * c.kv_heads, length, c.head_dim),
            v.transpose(1, 2).reshape(batch * c.kv_heads, length, c.head_dim),
            mask,
        )
        out = out.view(batch, c.kv_heads, group, length, c.head_dim).permute(0, 3, 1, 2, 4)
        return out.reshape(len(x), c.heads * c.head_dim) @ self.o_proj.to(x.dtype).t()


class MoE(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Parameter(torch.empty(config.experts, config.hidden_size))
        self.gate_up = nn.Parameter(torch.empty(config.experts, 2 * config.expert_size, config.hidden_size))
        self.down = nn.Parameter(torch.empty(config.experts, config.hidden_size, config.expert_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output [T, hidden], load-balance loss E * sum(f * P), and the share f of slots each expert received."""
        probs = torch.softmax(x.float() @ self.router.t(), dim=-1)
        weights, ids = probs.topk(self.config.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        share = torch.bincount(ids.flatten(), minlength=self.config.experts) / ids.numel()
        balance = self.config.experts * (share * probs.mean(0)).sum()
        out = GroupedExperts.apply(x, weights, self.gate_up.to(x.dtype), self.down.to(x.dtype), ids)
        return out, balance, share


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.attention = Attention(config)
        self.moe_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.moe = MoE(config)


class Model(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.Parameter(torch.ones(config.hidden_size))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self._tables: dict[int, tuple[tuple[Tensor, Tensor], Tensor]] = {}

    def _rope_and_mask(self, length: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        if length not in self._tables:
            c = self.config
            frequency = c.rope_theta ** -(torch.arange(0, c.head_dim, 2) / c.head_dim)
            angle = torch.outer(torch.arange(length), frequency).repeat(1, 2)
            mask = torch.full((length, length), float("-inf")).triu(1).repeat(c.heads // c.kv_heads, 1)
            self._tables[length] = (angle.cos(), angle.sin()), mask
        return self._tables[length]

    def forward(self, tokens_BL: Tensor, targets_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross-entropy, mean load-balance loss over layers, and expert shares [layers, experts]."""
        batch, length = tokens_BL.shape
        rope, mask = self._rope_and_mask(length)
        eps = self.config.norm_eps
        x = F.embedding(tokens_BL.flatten(), self.embedding)
        balances, shares = [], []
        for block in self.blocks:
            x = x + block.attention(_rms_norm(x, block.attention_norm, eps), batch, rope, mask)
            out, balance, share = block.moe(_rms_norm(x, block.moe_norm, eps))
            x = x + out
            balances.append(balance)
            shares.append(share)
        h = _rms_norm(x, self.final_norm, eps)
        loss = TiedCrossEntropy.apply(h, self.embedding.to(h.dtype), targets_BL.flatten())
        return loss, torch.stack(balances).mean(), torch.stack(shares)

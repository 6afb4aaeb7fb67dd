"""The three operations that dominate a training step, with hand-written backward passes.

PyTorch's CPU attention kernel and a naive expert loop spend most of a step outside matrix multiplication. Here the
matrix products are bfloat16 `mm`/`bmm` calls and everything between them is one compiled elementwise function.

Shapes: T tokens, K experts per token, E experts, H hidden, I expert width, R expert rows (T*K plus padding),
N batch x key/value heads, G query heads per key/value head, L sequence length, D head size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROW_MULTIPLE = 64  # oneDNN compiles one kernel per row count: round rows up so that the kernels can be reused
LOSS_CHUNK = 1024


@torch.compile(dynamic=True)
def _masked_softmax(scores: Tensor, mask: Tensor, scale: float) -> Tensor:
    return torch.softmax(scores.float() * scale + mask, dim=-1).to(scores.dtype)


@torch.compile(dynamic=True)
def _masked_softmax_backward(probs: Tensor, grad_probs: Tensor, delta: Tensor, scale: float) -> Tensor:
    return (probs.float() * (grad_probs.float() - delta[..., None]) * scale).to(probs.dtype)


class CausalAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v for q [N, G*L, D] and k, v [N, L, D]; `mask` [G*L, L] is additive."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        ctx.scale = q.shape[-1] ** -0.5
        probs = _masked_softmax(torch.bmm(q, k.transpose(1, 2)), mask, ctx.scale)
        out = torch.bmm(probs, v)
        ctx.save_for_backward(q, k, v, probs, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probs, out = ctx.saved_tensors
        grad = grad.contiguous()
        grad_v = torch.bmm(probs.transpose(1, 2), grad)
        delta = (grad.float() * out.float()).sum(-1)
        grad_probs = torch.bmm(grad, v.transpose(1, 2))
        grad_scores = _masked_softmax_backward(probs, grad_probs, delta, ctx.scale)
        return torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q), grad_v, None


@torch.compile(dynamic=True)
def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


@torch.compile(dynamic=True)
def _swiglu_backward(gate_up: Tensor, grad: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    grad_f32 = grad.float()
    grad_gate = grad_f32 * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([grad_gate, grad_f32 * gate * sigmoid], dim=-1).to(gate_up.dtype)


@torch.compile(dynamic=True)
def _weighted_sum(rows_TKH: Tensor, weights_TK: Tensor) -> Tensor:
    return (rows_TKH.float() * weights_TK[..., None]).sum(1).to(rows_TKH.dtype)


@torch.compile(dynamic=True)
def _row_sum(rows_TKH: Tensor) -> Tensor:
    return rows_TKH.float().sum(1).to(rows_TKH.dtype)


@torch.compile(dynamic=True)
def _row_dot(rows_TKH: Tensor, grad_TH: Tensor) -> Tensor:
    return (rows_TKH.float() * grad_TH.float()[:, None]).sum(-1)


@torch.compile(dynamic=True)
def _scale_rows(rows_RH: Tensor, weights_R: Tensor) -> Tensor:
    return (rows_RH.float() * weights_R[:, None]).to(rows_RH.dtype)


class GroupedExperts(torch.autograd.Function):
    """Gate-weighted sum of SwiGLU experts.

    x [T, H] bfloat16, weights [T, K] float32, gate_up [E, 2I, H] and down [E, H, I] bfloat16, ids [T, K] int64.
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor
    ) -> Tensor:
        tokens, top_k = ids.shape
        flat_ids = ids.flatten()
        counts = torch.bincount(flat_ids, minlength=len(gate_up))
        padded = (counts + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE
        starts = padded.cumsum(0) - padded
        order = torch.argsort(flat_ids, stable=True)
        within = torch.arange(len(order)) - (counts.cumsum(0) - counts)[flat_ids[order]]
        row_of_sorted = starts[flat_ids[order]] + within
        row_of_slot = torch.empty_like(order).scatter_(0, order, row_of_sorted)
        # A padding row repeats token 0 with weight zero, so that it adds nothing to any output or gradient.
        rows = int(padded.sum())
        token_of_row = torch.zeros(rows, dtype=torch.int64).scatter_(0, row_of_sorted, order // top_k)
        weight_of_row = torch.zeros(rows).scatter_(0, row_of_sorted, weights.detach().flatten()[order])
        spans = [(s, s + n) for s, n in zip(starts.tolist(), padded.tolist(), strict=True)]

        x_rows = x.index_select(0, token_of_row)
        hidden = x.new_empty(rows, gate_up.shape[1])
        out_rows = torch.empty_like(x_rows)
        for expert, (lo, hi) in enumerate(spans):
            torch.mm(x_rows[lo:hi], gate_up[expert].t(), out=hidden[lo:hi])
        active = _swiglu(hidden)
        for expert, (lo, hi) in enumerate(spans):
            torch.mm(active[lo:hi], down[expert].t(), out=out_rows[lo:hi])
        out_slots = out_rows.index_select(0, row_of_slot).view(tokens, top_k, -1)
        ctx.spans = spans
        ctx.save_for_backward(
            x_rows, hidden, active, out_slots, weights, gate_up, down, token_of_row, weight_of_row, row_of_slot
        )
        return _weighted_sum(out_slots, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_rows, hidden, active, out_slots, weights, gate_up, down, token_of_row, weight_of_row, row_of_slot = (
            ctx.saved_tensors
        )
        grad = grad.contiguous()
        grad_weights = _row_dot(out_slots, grad)
        grad_rows = _scale_rows(grad.index_select(0, token_of_row), weight_of_row)
        grad_active = torch.empty_like(active)
        grad_down, grad_gate_up = torch.zeros_like(down), torch.zeros_like(gate_up)
        for expert, (lo, hi) in enumerate(ctx.spans):
            torch.mm(grad_rows[lo:hi], down[expert], out=grad_active[lo:hi])
            torch.mm(grad_rows[lo:hi].t(), active[lo:hi], out=grad_down[expert])
        grad_hidden = _swiglu_backward(hidden, grad_active)
        grad_x_rows = torch.empty_like(x_rows)
        for expert, (lo, hi) in enumerate(ctx.spans):
            torch.mm(grad_hidden[lo:hi], gate_up[expert], out=grad_x_rows[lo:hi])
            torch.mm(grad_hidden[lo:hi].t(), x_rows[lo:hi], out=grad_gate_up[expert])
        grad_x = _row_sum(grad_x_rows.index_select(0, row_of_slot).view(out_slots.shape))
        return grad_x, grad_weights.view_as(weights), grad_gate_up, grad_down, None


@torch.compile(dynamic=True)
def _cross_entropy_chunk(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits_f32 = logits.float()
    shifted = logits_f32 - logits_f32.amax(-1, keepdim=True)
    exp = shifted.exp()
    total = exp.sum(-1, keepdim=True)
    hit = torch.arange(logits.shape[-1])[None] == targets[:, None]
    loss = (total.log()[:, 0] - torch.where(hit, shifted, 0.0).sum(-1)).sum()
    grad = (exp / total - hit.float()) * scale
    return loss * scale, grad.to(logits.dtype)


class TiedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of h [T, H] against an output matrix [V, H], computed in chunks of tokens."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
        scale = 1.0 / len(h)
        grad_h, grad_embedding = torch.empty_like(h), torch.zeros(embedding.shape)
        loss = torch.zeros(())
        for lo in range(0, len(h), LOSS_CHUNK):
            chunk = h[lo : lo + LOSS_CHUNK]
            part, grad_logits = _cross_entropy_chunk(chunk @ embedding.t(), targets[lo : lo + LOSS_CHUNK], scale)
            loss += part
            torch.mm(grad_logits, embedding, out=grad_h[lo : lo + LOSS_CHUNK])
            grad_embedding += grad_logits.t() @ chunk
        ctx.save_for_backward(grad_h, grad_embedding)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_embedding = ctx.saved_tensors
        return grad_h * grad.to(grad_h.dtype), (grad_embedding * grad).to(grad_h.dtype), None

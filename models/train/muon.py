"""Muon: momentum whose update is replaced by its nearest orthogonal matrix (Keller Jordan et al., 2024)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximately U V^T of each matrix [..., rows, cols] = U S V^T, in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Muon over parameters of shape [rows, cols] or [batch, rows, cols]; `split` cuts fused rows into matrices.

    Ranks share the orthogonalization: parameter i is updated by rank i mod world and broadcast as bfloat16.
    """

    def __init__(self, params: list[tuple[nn.Parameter, int]], *, momentum: float, weight_decay: float) -> None:
        self.params = params
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.buffers = [torch.zeros_like(parameter) for parameter, _ in params]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        updates = []
        for index, ((parameter, split), buffer) in enumerate(zip(self.params, self.buffers, strict=True)):
            if index % world == rank:
                buffer.lerp_(parameter.grad, 1 - self.momentum)
                nesterov = torch.lerp(parameter.grad, buffer, self.momentum)
                cols = parameter.shape[-1]
                matrices = nesterov.view(-1, parameter.shape[-2] // split, cols)
                scale = max(1.0, matrices.shape[-2] / cols) ** 0.5
                update = (orthogonalize(matrices) * scale).reshape(parameter.shape)
            else:
                update = torch.empty(parameter.shape, dtype=torch.bfloat16)
            updates.append(update.contiguous())
        if world > 1:
            work = [
                dist.broadcast(update.view(torch.uint8), src=index % world, async_op=True)
                for index, update in enumerate(updates)
            ]
            for handle in work:
                handle.wait()
        for (parameter, _), update in zip(self.params, updates, strict=True):
            parameter.mul_(1 - lr * self.weight_decay).add_(update.float(), alpha=-lr)

"""Softmax with sinks, and over a context that comes in pieces."""

from __future__ import annotations

import torch


def softmax_with_sinks(scores: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Weights of the last dimension of f32 ``scores`` [..., L] beside one more logit, ``sinks`` [..., 1]."""
    top = torch.maximum(scores.amax(dim=-1, keepdim=True), sinks)
    raised = torch.exp(scores - top)
    return raised / (raised.sum(dim=-1, keepdim=True) + torch.exp(sinks - top))


class RunningSoftmax:
    """Softmax-weighted sums of values, [..., M, V] in f32, of a context that comes in pieces.

    Sums shrink whenever a larger score comes (online softmax, Milakov and Gimelshein 2018).
    """

    def __init__(self, sinks: torch.Tensor, width: int) -> None:
        """``sinks`` f32 [..., M, 1] take part and carry no value; ``no_sinks`` gives the ones that do not take part."""
        self._top = sinks
        self._sum = (sinks > _NOTHING).to(torch.float32)
        self._values = sinks.new_zeros((*sinks.shape[:-1], width))

    def add(self, scores: torch.Tensor, values: torch.Tensor) -> None:
        """Take in a piece: f32 ``scores`` [..., M, P], -inf for what is not seen, and values that [..., P, V] fits."""
        top = torch.maximum(self._top, scores.amax(dim=-1, keepdim=True))
        shrink = torch.exp(self._top - top)
        raised = torch.exp(scores - top)
        self._top = top
        self._sum = self._sum * shrink + raised.sum(dim=-1, keepdim=True)
        self._values = self._values * shrink + (raised.to(values.dtype) @ values).float()

    def result(self) -> torch.Tensor:
        """The sums so far; at least one score, or sink, has been finite."""
        return self._values / self._sum


#: Finite, so that a row that has seen nothing yet computes 0 * exp(0), not 0 * NaN.
_NOTHING = torch.finfo(torch.float32).min


def no_sinks(*shape: int, device: torch.device) -> torch.Tensor:
    """Sinks [*shape, 1] that do not take part."""
    return torch.full((*shape, 1), _NOTHING, device=device)

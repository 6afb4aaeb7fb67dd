"""The exchange of the monolithic mode: the experts are in the same process, so a dispatch is a function call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from janus.model.experts import ExpertBank


@dataclass(frozen=True, slots=True)
class LocalReceipt:
    """The result is there before anybody waits for it."""

    layer: int
    y_TH: torch.Tensor


class LocalExchange:
    """Every expert in slot ``e`` of one bank in this process, under the name ``local``."""

    def __init__(self, bank: ExpertBank, *, num_layers: int) -> None:
        self._bank = bank
        self._activated = [0] * num_layers

    @property
    def experts_gate(self) -> bool:
        return False

    def ready(self) -> bool:
        return True

    async def wait_ready(self, timeout_s: float) -> None:
        return None

    async def wait_changed(self, timeout_s: float) -> None:
        return None

    def dispatch(
        self,
        layer: int,
        x_TH: torch.Tensor,
        topk_ids_TK: torch.Tensor | None,
        topk_weights_TK: torch.Tensor | None,
    ) -> LocalReceipt:
        assert topk_ids_TK is not None and topk_weights_TK is not None  # the gate is always here
        self._activated[layer] = self._bank.activated(topk_ids_TK)
        return LocalReceipt(layer, self._bank.forward(layer, x_TH, topk_ids_TK, topk_weights_TK))

    async def combine(self, receipt: LocalReceipt, residual_TH: torch.Tensor | None = None) -> torch.Tensor:
        return receipt.y_TH if residual_TH is None else residual_TH + receipt.y_TH

    def activated(self) -> dict[str, list[int]]:
        return {"local": list(self._activated)}

    async def close(self) -> None:
        return None

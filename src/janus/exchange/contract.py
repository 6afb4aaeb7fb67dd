"""What every exchange offers to the step loop: ``dispatch`` posts and returns, ``combine`` waits and sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch


class Receipt(Protocol):
    """One dispatch in flight. Opaque to the caller; carries the routing from ``dispatch`` to ``combine``."""

    @property
    def layer(self) -> int:
        """The MoE layer, counted over MoE layers only."""


ReceiptT = TypeVar("ReceiptT", bound=Receipt)


class ExpertExchange(Protocol[ReceiptT]):
    """One MoE layer's round trip to the experts.

    A layer whose experts did not all answer is sent again to other replicas, where there are any: ``combine`` raises
    only when there are none, or when it takes too long.

    Any number of receipts may be outstanding, so that a second micro-batch, or a shared expert, can compute meanwhile.
    """

    @property
    def experts_gate(self) -> bool:
        """Whether the experts' side gates: ``dispatch`` is then given activations alone."""

    def ready(self) -> bool:
        """Whether a dispatch posted now could reach a replica of every expert."""

    async def wait_ready(self, timeout_s: float) -> None:
        """Return as soon as ``ready()``.

        Raises:
            InstanceLost: not within ``timeout_s``; the error names what is missing.
        """

    async def wait_changed(self, timeout_s: float) -> None:
        """Return when the placement or a link has changed, or after ``timeout_s``, whichever is first."""

    def dispatch(
        self,
        layer: int,
        x_TH: torch.Tensor,
        topk_ids_TK: torch.Tensor | None,
        topk_weights_TK: torch.Tensor | None,
    ) -> ReceiptT:
        """Send each row of ``x_TH`` to its experts, and return at once.

        Args:
            layer: MoE layer, counted over MoE layers only.
            x_TH: activations, serving dtype; not to be overwritten before ``combine`` has returned.
            topk_ids_TK: int32, logical expert ids, distinct within a row; ``None`` with ``experts_gate``. Neither
                to be overwritten before ``combine`` has returned.
            topk_weights_TK: float32 gate weights, likewise.

        Raises:
            InstanceLost: no instance that hosts a chosen expert is linked.
        """

    async def combine(self, receipt: ReceiptT, residual_TH: torch.Tensor | None = None) -> torch.Tensor:
        """Return y_TH, serving dtype: for each row, the sum over its experts of gate weight times output.

        ``residual_TH`` of the same shape and dtype, if given, is added to it.

        The order of summation is fixed by the placement, never by timing. A cancelled call leaves the receipt's
        answers to be dropped on arrival.

        Raises:
            InstanceLost: an instance died or did not answer within the deadline, and an expert is nowhere else.
            ReplicaMissing: likewise, an instance does not hold what the placement says; plan again with a newer epoch.
        """

    def activated(self) -> dict[str, list[int]]:
        """Experts activated by the last dispatch of each MoE layer: ``{instance: [count per layer]}``."""

    async def close(self) -> None:
        """Fail what is outstanding and release the links."""

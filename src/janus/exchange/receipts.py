"""A dispatch in flight: what was asked of whom, and what has come back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import torch

from janus.errors import DispatchError, InstanceLost
from janus.exchange.choice import Decision
from janus.exchange.packing import Answer, Rows
from janus.transport.contract import InFrame


class Waiter(Protocol):
    """Whoever waits for the answer to one frame."""

    @property
    def via(self) -> str:
        """The instance that answers; when its link goes down there will be no answer."""

    def answered(self, frame: InFrame) -> None:
        """Take the answer; the frame is the waiter's."""

    def failed(self, error: DispatchError) -> None:
        """There will be no answer."""


def mismatch(frame: InFrame, via: str, rows: int, cols: int, dtype_code: int) -> InstanceLost | None:
    """Return what is wrong with a combine frame; ``None`` when it is as expected."""
    header = frame.header
    if (header.rows, header.cols, header.dtype) == (rows, cols, dtype_code):
        return None
    return InstanceLost(
        f"{via}: combine frame is {header.rows}x{header.cols} of type {header.dtype}, "
        f"expected {rows}x{cols} of type {dtype_code}",
        instances=(via,),
    )


@dataclass(slots=True, eq=False)
class Part:
    """What one destination was asked within a receipt. Waits for the answer itself, unless it is in a bundle."""

    receipt: Receipt
    #: The instance that answers: the destination's relay, or the member of this node that posts for it.
    via: str
    #: Index of the destination's node in the placement.
    group: int
    count: int
    #: Rows of the batch that went there; ``None`` = all of them, in order.
    rows: Rows
    answer: Answer | None = None
    frame: InFrame | None = None

    def answered(self, frame: InFrame) -> None:
        receipt = self.receipt
        problem = mismatch(frame, self.via, self.count, receipt.shape[1], receipt.dtype_code)
        if problem is not None:
            frame.release()
            receipt.fail(problem)
        else:
            self.take(frame, 0)

    def take(self, frame: InFrame, first: int) -> None:
        """Take the answer: rows from ``first`` on of ``frame``, which is released with the receipt."""
        receipt, header = self.receipt, frame.header
        if receipt.done.done():
            frame.release()
            return
        start = first * receipt.row_nbytes
        self.answer = Answer(frame.payload[start:], frame.address + start, self.count, self.rows)
        self.frame = frame
        receipt.arrived(header.payload_len, header.elapsed_us)

    def failed(self, error: DispatchError) -> None:
        self.receipt.fail(error)


@dataclass(slots=True, eq=False)
class Receipt:
    """See ``janus.exchange.contract.Receipt``. ``parts`` are in the order in which the partial sums are added."""

    layer: int
    shape: torch.Size
    dtype_code: int
    row_nbytes: int
    decision: Decision
    posted_ns: int
    done: asyncio.Future[None]
    parts: list[Part] = None  # type: ignore[assignment]  # set at once; a factory per dispatch costs more
    outstanding: int = 0
    bytes_in: int = 0
    slowest_us: int = 0
    #: Frames that wait for an answer on its behalf alone: forgotten with the receipt.
    request_ids: list[int] = None  # type: ignore[assignment]
    timer: asyncio.TimerHandle | None = None

    def arrived(self, nbytes: int, elapsed_us: int) -> None:
        """One part has its answer."""
        self.bytes_in += nbytes
        self.slowest_us = max(self.slowest_us, elapsed_us)
        self.outstanding -= 1
        if self.outstanding == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: DispatchError) -> None:
        """End it without a result; what arrives later is dropped."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # a receipt that nobody combines any more is no "never retrieved" warning

    def release(self) -> None:
        """Give the answers' memory back."""
        for part in self.parts:
            part.answer = None
            frame, part.frame = part.frame, None
            if frame is not None:
                frame.release()

    def late(self) -> tuple[str, ...]:
        """The instances that have not answered."""
        return tuple(dict.fromkeys(part.via for part in self.parts if part.answer is None))

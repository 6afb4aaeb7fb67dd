"""A dispatch in flight: what was asked of whom, and what has come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import structlog
import torch

from janus.errors import DispatchError, InstanceLost, LinkError, ReplicaMissing
from janus.exchange.choice import Decision
from janus.exchange.packing import Answer, Rows, group_ends
from janus.messages.control import DispatchRejected
from janus.transport.contract import InFrame
from janus.transport.link import Link

log = structlog.get_logger(__name__)


class AnswerLate(InstanceLost):
    """An answer is late, and the dispatch need not wait for it."""


class DispatchRefused(InstanceLost):
    """Whoever was asked has said that there will be no answer. ``code``: why, as ``DispatchRejected`` has it."""

    def __init__(self, problem: str, *, instances: tuple[str, ...], code: str) -> None:
        super().__init__(problem, instances=instances)
        self.code = code


def reject(link: Link, request_id: int, error: DispatchError) -> None:
    """Answer a dispatch with why there is no combine frame."""
    code: Literal["replica_missing", "bad_frame", "instance_lost"] = "instance_lost"
    if isinstance(error, ReplicaMissing):
        code = "replica_missing"
    elif isinstance(error, DispatchRefused) and error.code == "bad_frame":
        code = "bad_frame"
    message = DispatchRejected(code=code, problem=str(error), instances=list(error.instances))
    try:
        link.post_message(message, request_id=request_id)
    except LinkError as lost:
        log.info("answer_dropped", peer=link.peer.instance, problem=lost.problem)


class Waiter(Protocol):
    """Whoever waits for the answer to one frame."""

    @property
    def epoch(self) -> int:
        """The placement epoch that the frame names."""

    @property
    def via(self) -> str:
        """The instance that answers; when its link goes down there will be no answer."""

    def answered(self, frame: InFrame) -> None:
        """Take the answer; the frame is the waiter's."""

    def failed(self, error: DispatchError) -> None:
        """There will be no answer."""


def mismatch(frame: InFrame, via: str, rows: int, cols: int, dtype_code: int) -> DispatchRefused | None:
    """Return what is wrong with a combine frame; ``None`` when it is as expected."""
    header = frame.header
    if (header.rows, header.cols, header.dtype) == (rows, cols, dtype_code):
        return None
    return DispatchRefused(
        f"{via}: combine frame is {header.rows}x{header.cols} of type {header.dtype}, "
        f"expected {rows}x{cols} of type {dtype_code}",
        instances=(via,),
        code="internal",
    )


@dataclass(slots=True, eq=False)
class Part:
    """One frame of a dispatch; waits for its answer."""

    receipt: Receipt
    #: The instance that answers: the destination's relay, or the member of this node that posts for all.
    via: str
    #: Index of the destination's node in the placement.
    group: int
    count: int
    #: Rows of the batch that went there; ``None`` = all of them, in order.
    rows: Rows
    answer: Answer | None = None

    @property
    def epoch(self) -> int:
        return self.receipt.asked.epoch

    def answered(self, frame: InFrame) -> None:
        receipt = self.receipt
        problem = mismatch(frame, self.via, self.count, receipt.shape[1], receipt.dtype_code)
        if problem is not None or receipt.done.done():
            frame.release()
            if problem is not None:
                receipt.fail(problem)
            return
        self.answer = Answer(frame.payload, frame.address, self.count, self.rows)
        receipt.frames.append(frame)
        if receipt.arrivals is not None:
            receipt.arrivals.append((self.via, time.perf_counter_ns()))
        receipt.arrived()

    def failed(self, error: DispatchError) -> None:
        self.receipt.fail(error)


@dataclass(slots=True, eq=False)
class Asked:
    """What was to be dispatched, so that it can be sent again, and what has become of it so far."""

    x_TH: torch.Tensor
    topk_ids_TK: torch.Tensor | None
    topk_weights_TK: torch.Tensor | None
    #: When the experts' time is over, on the loop's clock.
    deadline_s: float
    #: How often it was sent, and the epoch that it was last planned with.
    attempts: int = 0
    epoch: int = 0


@dataclass(slots=True, eq=False)
class Receipt:
    """See ``janus.exchange.contract.Receipt``. ``parts`` are in the order in which the partial sums are added."""

    asked: Asked
    layer: int
    shape: torch.Size
    dtype_code: int
    decision: Decision
    #: When packing began, and when the last frame was posted.
    begun_ns: int
    posted_ns: int
    done: asyncio.Future[None]
    parts: list[Part] = field(default_factory=list)
    #: Answers that are waited for.
    outstanding: int = 0
    #: What came back: released with the receipt.
    frames: list[InFrame] = field(default_factory=list)
    #: The answers to a bundle that has these rows, and how they are grouped.
    sums: tuple[list[Answer], list[int]] | None = None
    #: Frames that wait for an answer on its behalf alone: forgotten with the receipt.
    request_ids: list[int] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    #: The member that posts for all, if its rows were handed in; whether each part is one expert instance's alone.
    handed_to: str = ""
    per_instance: bool = False
    #: How long it is waited before it is late, seconds, and when the timer fires next, on the loop's clock.
    patience_s: float = 0.0
    due_s: float = 0.0
    #: How often the loop was given time to take in what was there when it became late, and how often it was late.
    looks: int = 0
    rounds: int = 0
    #: Who has answered when, where that is measured: ``time.perf_counter_ns``.
    arrivals: list[tuple[str, int]] | None = None

    def arrived(self) -> None:
        """One answer is here."""
        self.outstanding -= 1
        if self.outstanding == 0 and not self.done.done():
            self.done.set_result(None)

    def take_sums(self, answers: list[Answer], ends: list[int], frames: Sequence[InFrame | None]) -> None:
        """Take this instance's rows of the answers to a bundle, and ``frames``, in whose memory they are."""
        given = [frame for frame in frames if frame is not None]
        if self.done.done():
            for frame in given:
                frame.release()
            return
        self.sums = (answers, ends)
        self.frames = given
        self.arrived()

    def answers(self) -> tuple[list[Answer], list[int]]:
        """Return the partial sums in order, and how they are grouped by node; all of them are here."""
        if self.sums is not None:
            return self.sums
        answers = [part.answer for part in self.parts if part.answer is not None]
        return answers, group_ends([part.group for part in self.parts])

    def fail(self, error: DispatchError) -> None:
        """End it without a result; what has arrived is given back, what arrives later is dropped."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # a receipt that nobody combines any more is no "never retrieved" warning
            self.release()

    def release(self) -> None:
        """Give the answers' memory back."""
        self.sums = None
        # They name the receipt: without them it goes, and the activations with it, as soon as nobody holds it.
        self.parts.clear()
        for frame in self.frames:
            frame.release()
        self.frames.clear()

    def late(self) -> tuple[str, ...]:
        """The instances that have not answered."""
        return tuple(dict.fromkeys(part.via for part in self.parts if part.answer is None))

    def heard(self) -> bool:
        """Whether anybody has answered."""
        return any(part.answer is not None for part in self.parts)

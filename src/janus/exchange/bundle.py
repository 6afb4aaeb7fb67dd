"""One bundle: whose rows are in it, what was posted for them, and what has come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch

from janus.core.exchange_routes import Mode
from janus.errors import DispatchError
from janus.exchange.packing import Received, Routed, Rows
from janus.exchange.plan import Plan
from janus.exchange.receipts import Receipt, mismatch, reject
from janus.transport.contract import InFrame
from janus.transport.link import Link

#: What rows must agree in to share a bundle: way, layer, plan, K, flags, H.
Key: TypeAlias = tuple[Mode, int, Plan, int, int, int]


class Owner(Protocol):
    """Whoever posts bundles."""

    @property
    def dtype_code(self) -> int:
        """Of activations, as headers have it."""

    def answered(self, bundle: Bundle) -> None:
        """All answers to ``bundle`` are in."""

    def forget_answers(self, request_ids: Sequence[int], /) -> None:
        """These are waited for no more."""


@dataclass(slots=True, eq=False)
class Batch:
    """One member's rows in a bundle."""

    #: T.
    total: int
    #: ``None``: the experts gate; then the rows are [T, H] in ``x_TH``. Another member's are in a hand-in's memory.
    routed: Routed | Received | None
    x_TH: torch.Tensor | None = None
    #: This instance's own dispatch, or else who handed the rows in, under which request id.
    receipt: Receipt | None = None
    link: Link | None = None
    request_id: int = 0
    #: What was handed in, until its rows are copied into the frames that go on.
    frame: InFrame | None = None
    #: For each destination: how many rows went there, and which.
    counts: list[int] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)

    def release(self) -> None:
        """Give a hand-in's memory back."""
        frame, self.frame = self.frame, None
        if frame is not None:
            frame.release()


@dataclass(slots=True, eq=False)
class Post:
    """One frame of a bundle; waits for its answer."""

    bundle: Bundle
    index: int
    via: str
    rows: int

    @property
    def epoch(self) -> int:
        return self.bundle.plan.placement.epoch

    def answered(self, frame: InFrame) -> None:
        self.bundle.take(self, frame)

    def failed(self, error: DispatchError) -> None:
        self.bundle.fail(error)


@dataclass(slots=True, eq=False)
class Bundle:
    """What goes on for one layer and plan."""

    owner: Owner
    key: Key
    deadline_ms: int
    opened_s: float
    #: When waiting for other members is given up.
    due_s: float
    batches: list[Batch] = field(default_factory=list)
    posts: list[Post | None] = field(default_factory=list)
    answers: list[InFrame | None] = field(default_factory=list)
    outstanding: int = 0
    request_ids: list[int] = field(default_factory=list)
    sent_s: float = 0.0
    over: bool = False
    timer: asyncio.TimerHandle | None = None
    #: How long it is waited before it is late, when the timer fires next, and when waiting is over.
    patience_s: float = 0.0
    look_s: float = 0.0
    last_s: float = 0.0
    #: As of a receipt.
    looks: int = 0
    rounds: int = 0
    #: Rows of all members.
    rows: int = 0
    #: Who has answered how many seconds after the post, where that is measured.
    timings: list[tuple[str, float]] | None = None

    @property
    def plan(self) -> Plan:
        """How it goes on."""
        return self.key[2]

    def take(self, post: Post, frame: InFrame) -> None:
        """Take the answer to one of the frames."""
        owner = self.owner
        problem = mismatch(frame, post.via, post.rows, self.key[5], owner.dtype_code)
        if self.over or problem is not None:
            frame.release()
            if problem is not None:
                self.fail(problem)
            return
        self.answers[post.index] = frame
        if self.timings is not None:
            self.timings.append((post.via, time.monotonic() - self.sent_s))
        self.outstanding -= 1
        if not self.outstanding:
            owner.answered(self)

    def fail(self, error: DispatchError) -> None:
        """Tell each member that there will be no sums."""
        if self.over:
            return
        self.end()
        for batch in self.batches:
            if batch.receipt is not None:
                batch.receipt.fail(error)
            elif batch.link is not None:
                reject(batch.link, batch.request_id, error)
            batch.release()

    def end(self) -> None:
        """Give back what it holds; answers that still come belong to nobody."""
        self.over = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        # They name the bundle. Left to the garbage collector, a few small objects per layer keep the allocator from
        # reusing what a layer gives back, and each layer's result is in memory that was never touched before.
        self.posts.clear()
        self.owner.forget_answers(self.request_ids)
        for frame in self.answers:
            if frame is not None:
                frame.release()
        self.answers.clear()

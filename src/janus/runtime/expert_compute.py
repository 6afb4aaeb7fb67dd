"""What waits for one layer of experts, computed together: from the frames that came into those that go back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch

from janus.exchange.layout import matrix
from janus.model.experts import ExpertBank
from janus.runtime.relay import RelayJob
from janus.runtime.replica_slots import ReplicaSlots
from janus.runtime.shares import Share
from janus.transport.link import InFrame, Link, OutFrame


@dataclass(slots=True)
class ExpertTimes:
    """What an expert instance has done since its start; times in nanoseconds."""

    dispatches: int = 0
    rows: int = 0
    #: Grouped computations; ``dispatches / groups`` is how many dispatches one read of the weights served.
    groups: int = 0
    activated: int = 0
    #: In the queue, summed over dispatches.
    queued_ns: int = 0
    compute_ns: int = 0
    reply_ns: int = 0
    rejected: int = 0


@dataclass(slots=True)
class Waiting:
    """A dispatch, or the share of one, that waits for its layer to be computed."""

    link: Link
    frame: InFrame
    share: Share
    arrived_ns: int
    #: Of the replicas, when the share was checked against them.
    generation: int
    #: Where the partial sums go when other instances of the node compute the rest.
    job: RelayJob | None = None


class ExpertCompute:
    """The arithmetic of an expert instance, and what it takes."""

    def __init__(
        self, replicas: ReplicaSlots, device: torch.device, reply: Callable[[int, Waiting, OutFrame, int], None]
    ) -> None:
        """``reply``: takes the layer, a dispatch, its answer, and the nanoseconds that computing took."""
        self._replicas = replicas
        self._device = device
        self._reply = reply
        self.times = ExpertTimes()

    def run(self, layer: int, group: list[Waiting]) -> None:
        """Compute the dispatches of ``group`` together, and hand each its answer."""
        bank = self._replicas.bank
        assert bank is not None  # a dispatch is queued only when its slots are loaded
        started = time.perf_counter_ns()
        times = self.times
        times.groups += 1
        for waiting in group:
            times.dispatches += 1
            times.rows += waiting.share.rows
            times.queued_ns += started - waiting.arrived_ns
        if len(group) == 1:
            self._compute_one(bank, layer, group[0], started)
            return
        shares = [waiting.share for waiting in group]
        if bank.takes_addresses:
            frames, times.activated = self._forward(bank, layer, group), times.activated + self._distinct(shares)
        else:
            x_NH, slots_NK, weights_NK = Share.joined(shares, self._device)
            y_NH = bank.forward(layer, x_NH, slots_NK, weights_NK)
            times.activated += bank.activated(slots_NK)
            ends = list(accumulate(share.rows for share in shares))
            frames = [self._answer(w, y_NH[end - w.share.rows : end]) for w, end in zip(group, ends, strict=True)]
        computed = time.perf_counter_ns()
        times.compute_ns += computed - started
        for waiting, frame in zip(group, frames, strict=True):
            self._reply(layer, waiting, frame, computed - started)
        times.reply_ns += time.perf_counter_ns() - computed

    @staticmethod
    def _forward(bank: ExpertBank, layer: int, group: list[Waiting]) -> list[OutFrame]:
        """Compute several dispatches as one, from the frames that came into those that go back."""
        shares = [waiting.share for waiting in group]
        frames = [waiting.link.allocate(waiting.share.answer_nbytes) for waiting in group]
        top_k = shares[0].top_k
        if any(share.top_k != top_k for share in shares):
            raise ValueError(f"dispatches with K of {sorted({share.top_k for share in shares})} wait for one layer")
        bank.forward_joint(
            layer,
            [share.rows for share in shares],
            top_k,
            x=[share.x_address for share in shares],
            slots=[share.slots_address for share in shares],
            weights=[share.weights_address for share in shares],
            out=[frame.address for frame in frames],
        )
        return frames

    def _distinct(self, shares: list[Share]) -> int:
        """Return how many distinct experts ``shares`` activate together."""
        return self._replicas.distinct([(share.slots_address, share.rows * share.top_k) for share in shares])

    def _compute_one(self, bank: ExpertBank, layer: int, waiting: Waiting, started: int) -> None:
        share = waiting.share
        if bank.takes_addresses:
            # The common case at decode: from the frame that came straight into the frame that goes back.
            frame = waiting.link.allocate(share.answer_nbytes)
            bank.forward_at(
                layer,
                share.rows,
                share.top_k,
                x=share.x_address,
                slots=share.slots_address,
                weights=share.weights_address,
                out=frame.address,
            )
        else:
            x_NH, slots_NK, weights_NK = (view.to(self._device) for view in share.views())
            y_NH = bank.forward(layer, x_NH, slots_NK, weights_NK)
            frame = self._answer(waiting, y_NH)
        computed = time.perf_counter_ns()
        self._reply(layer, waiting, frame, computed - started)
        self.times.compute_ns += computed - started
        self.times.reply_ns += time.perf_counter_ns() - computed
        self.times.activated += share.activated

    @staticmethod
    def _answer(waiting: Waiting, y_NH: torch.Tensor) -> OutFrame:
        frame = waiting.link.allocate(waiting.share.answer_nbytes)
        matrix(frame.payload, y_NH.shape[0], y_NH.shape[1], y_NH.dtype).copy_(y_NH)
        return frame

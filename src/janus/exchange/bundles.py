"""Bundles: rows of several attention instances of a node for one destination, in one frame.

One member of the node posts for all (the aggregator); the others hand their rows in over the node's shared memory. The
frame looks like the dispatch of one instance with more rows, so whoever computes it needs to know nothing of bundles.
The answer is one frame too; each member gets its rows of it, by reference.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import structlog
import torch

from janus.core.exchange_routes import Destination
from janus.core.linger import Linger
from janus.errors import DispatchError, InstanceLost, LinkError, ReplicaMissing
from janus.exchange.fine_timer import FineTimer
from janus.exchange.layout import DispatchLayout, UngatedLayout, dispatch_layout
from janus.exchange.packing import Numbering, Packing, Routed
from janus.exchange.receipts import Part, mismatch
from janus.messages.control import DispatchRejected
from janus.transport.contract import InFrame, OutFrame
from janus.transport.frame import Flags, Kind
from janus.transport.link import Link

log = structlog.get_logger(__name__)

#: Bounds of a wait for other members, seconds. Within them it is what the last exchange with the destination took.
_SHORTEST_S = 100e-6
_LONGEST_S = 5e-3

#: What rows must agree in to share a bundle: target, layer, epoch, K, flags.
_Key: TypeAlias = tuple[int, int, int, int, int]


@dataclass(slots=True, eq=False)
class OwnRows:
    """This instance's rows for a bundle, not yet packed: where they go depends on what the others hand in."""

    part: Part
    x_TH: torch.Tensor
    #: How the rows are routed, and how the destination numbers its slots. ``None``: the experts gate, all rows go.
    routed: Routed | None
    numbering: Numbering | None


@dataclass(slots=True, eq=False)
class HandedIn:
    """Another member's rows for a bundle."""

    link: Link
    request_id: int
    rows: int
    #: Until the rows are copied into the bundle's frame.
    frame: InFrame


@dataclass(slots=True, eq=False)
class Bundle:
    """What goes to ``destination`` for one layer and epoch. Waits for the answer to all of it."""

    destination: Destination
    layer: int
    epoch: int
    top_k: int
    flags: int
    deadline_ms: int
    opened_s: float
    own: OwnRows | None = None
    handed_in: list[HandedIn] = field(default_factory=list)
    #: When waiting is given up.
    due_s: float = 0.0
    sent_s: float = 0.0
    hidden: int = 0
    dtype_code: int = 0
    row_nbytes: int = 0
    timer: asyncio.TimerHandle | None = None
    answered_s: Callable[[float], None] = lambda seconds: None

    @property
    def via(self) -> str:
        return self.destination.relay

    @property
    def rows(self) -> int:
        """Rows of all members."""
        own = 0 if self.own is None else self.own.part.count
        return own + sum(given.rows for given in self.handed_in)

    def answered(self, frame: InFrame) -> None:
        """Give each member its rows of the answer."""
        if self.timer is not None:
            self.timer.cancel()
        problem = mismatch(frame, self.via, self.rows, self.hidden, self.dtype_code)
        if problem is not None:
            frame.release()
            self.failed(problem)
            return
        self.answered_s(time.monotonic() - self.sent_s)
        first = 0 if self.own is None else self.own.part.count
        for given in self.handed_in:
            self._forward(given, frame, first)
            first += given.rows
        if self.own is not None:
            self.own.part.take(frame, 0)
        else:
            frame.release()

    def _forward(self, given: HandedIn, frame: InFrame, first: int) -> None:
        try:
            given.link.forward(
                frame,
                first=first * self.row_nbytes,
                nbytes=given.rows * self.row_nbytes,
                kind=Kind.COMBINE,
                request_id=given.request_id,
                epoch=self.epoch,
                layer=self.layer,
                dtype=self.dtype_code,
                rows=given.rows,
                cols=self.hidden,
                elapsed_us=frame.header.elapsed_us,
            )
        except LinkError as error:
            log.info("combine_dropped", peer=given.link.peer.instance, problem=error.problem)

    def failed(self, error: DispatchError) -> None:
        """Tell each member."""
        if self.timer is not None:
            self.timer.cancel()
        if self.own is not None:
            self.own.part.failed(error)
        for given in self.handed_in:
            reject(given.link, given.request_id, error)
            given.frame.release()


def reject(link: Link, request_id: int, error: DispatchError) -> None:
    """Answer a dispatch with why there is no combine frame."""
    missing = isinstance(error, ReplicaMissing)
    message = DispatchRejected(
        code="replica_missing" if missing else "instance_lost", problem=str(error), instances=list(error.instances)
    )
    try:
        link.post_message(message, request_id=request_id)
    except LinkError as lost:
        log.info("answer_dropped", peer=link.peer.instance, problem=lost.problem)


class Bundles:
    """The bundles of one aggregator: opened with the first rows, posted when all who are expected are in."""

    def __init__(
        self,
        *,
        own: str,
        packing: Packing,
        dtype: torch.dtype,
        dtype_code: int,
        links: Mapping[str, Link],
        await_answer: Callable[[Bundle], int],
        worth_s: Callable[[], float],
    ) -> None:
        """Args:
        own: this instance.
        packing: writes rows.
        dtype: of activations.
        dtype_code: its code in headers.
        links: to expert instances, by name.
        await_answer: gives a bundle the request id under which its answer will come.
        worth_s: what one message less is worth, seconds.
        """
        self._own = own
        self._packing = packing
        self._dtype = dtype
        self._code = dtype_code
        self._links = links
        self._await_answer = await_answer
        self._worth_s = worth_s
        self._open: dict[_Key, Bundle] = {}
        self._lingers: dict[int, Linger] = {}
        #: Last time from post to answer, by target.
        self._round_s: dict[int, float] = {}
        self._timer = FineTimer(self._due)
        self.sent = 0
        self.rows_handed_in = 0
        self.bytes_out = 0
        self.lingered_s = 0.0

    def close(self) -> None:
        """Drop what is open and give the timer back."""
        for bundle in self._open.values():
            bundle.failed(InstanceLost("the exchange is closing"))
        self._open.clear()
        self._timer.close()

    def forget(self, member: str) -> None:
        """A member is gone: its rows in open bundles go with it."""
        for linger in self._lingers.values():
            linger.forget(member)
        for key, bundle in list(self._open.items()):
            for given in [given for given in bundle.handed_in if given.link.peer.instance == member]:
                bundle.handed_in.remove(given)
                given.frame.release()
            if bundle.own is None and not bundle.handed_in:
                del self._open[key]
            else:
                self._maybe_send(key, bundle)

    def add_own(
        self,
        destination: Destination,
        rows: OwnRows,
        *,
        layer: int,
        epoch: int,
        top_k: int,
        flags: int,
        deadline_ms: int,
    ) -> None:
        """Put this instance's rows into the bundle for ``destination``."""
        key = (destination.target, layer, epoch, top_k, flags)
        bundle = self._open.get(key)
        if bundle is not None and bundle.own is not None:  # another micro-batch of ours
            self._send(key, bundle)
            bundle = None
        if bundle is None:
            bundle = self._begin(key, destination, deadline_ms)
        bundle.own = rows
        self._maybe_send(key, bundle)

    def add(self, destination: Destination, link: Link, frame: InFrame, *, flags: int) -> None:
        """Put rows that a member hands in into the bundle for ``destination``."""
        header = frame.header
        # What a batch has for K is not the bundle's: with the gate at the experts it counts batches.
        top_k = 0 if flags & Flags.EGATE else header.top_k
        key = (destination.target, header.layer, header.epoch, top_k, flags)
        bundle = self._open.get(key)
        if bundle is None:
            bundle = self._begin(key, destination, header.deadline_ms)
        self.rows_handed_in += header.rows
        bundle.handed_in.append(HandedIn(link, header.request_id, header.rows, frame))
        self._maybe_send(key, bundle)

    def _begin(self, key: _Key, destination: Destination, deadline_ms: int) -> Bundle:
        now = time.monotonic()
        _, layer, epoch, top_k, flags = key
        limit_s = min(max(self._round_s.get(destination.target, 0.0), _SHORTEST_S), _LONGEST_S)
        bundle = Bundle(destination, layer, epoch, top_k, flags, deadline_ms, now, due_s=now + limit_s)
        self._open[key] = bundle
        return bundle

    # -- waiting -------------------------------------------------------------------------------------------------

    def _present(self, bundle: Bundle) -> list[str]:
        names = [given.link.peer.instance for given in bundle.handed_in]
        return names if bundle.own is None else [self._own, *names]

    def _maybe_send(self, key: _Key, bundle: Bundle) -> None:
        linger = self._lingers.setdefault(bundle.destination.target, Linger())
        if linger.expected(self._present(bundle)):
            self._set_timer()
        else:
            self._send(key, bundle)

    def _set_timer(self) -> None:
        self._timer.set(min((bundle.due_s for bundle in self._open.values()), default=None))

    def _due(self) -> None:
        now = time.monotonic()
        for key, bundle in list(self._open.items()):
            if bundle.due_s <= now:
                self._send(key, bundle)
        self._set_timer()

    # -- posting -------------------------------------------------------------------------------------------------

    def _send(self, key: _Key, bundle: Bundle) -> None:
        del self._open[key]
        now = time.monotonic()
        waited_s = now - bundle.opened_s
        self.lingered_s += waited_s
        linger = self._lingers[bundle.destination.target]
        linger.sent(self._present(bundle), waited_s=waited_s, worth_s=self._worth_s())
        try:
            self._post(bundle, now)
        except LinkError as error:
            bundle.failed(InstanceLost(f"cannot dispatch to {error}", instances=(error.peer,)))

    def _post(self, bundle: Bundle, now: float) -> None:
        destination = bundle.destination
        link = self._links.get(destination.relay)
        if link is None:
            raise LinkError(destination.relay, "is not linked")
        frame, layout, top_k = self._fill(bundle, link)
        bundle.hidden, bundle.dtype_code, bundle.row_nbytes = layout.hidden, self._code, layout.row_nbytes
        bundle.sent_s = now
        bundle.answered_s = lambda seconds: self._round_s.__setitem__(destination.target, seconds)
        request_id = self._await_answer(bundle)
        link.post(
            frame,
            kind=Kind.DISPATCH,
            request_id=request_id,
            epoch=bundle.epoch,
            layer=bundle.layer,
            dtype=self._code,
            top_k=top_k,
            rows=layout.rows,
            cols=layout.hidden,
            deadline_ms=bundle.deadline_ms,
            flags=bundle.flags | (Flags.NODE if destination.is_node else 0),
        )
        self.sent += 1
        self.bytes_out += layout.nbytes

    def _fill(self, bundle: Bundle, link: Link) -> tuple[OutFrame, DispatchLayout | UngatedLayout, int]:
        """Return a frame with everybody's rows, and how they are laid out."""
        own, rows = bundle.own, bundle.rows
        hidden = own.x_TH.shape[1] if own is not None else bundle.handed_in[0].frame.header.cols
        if bundle.flags & Flags.EGATE:
            batches = len(bundle.handed_in) + (own is not None)
            ungated = UngatedLayout(rows, hidden, batches, self._dtype)
            frame = link.allocate(ungated.nbytes)
            x, counts = ungated.views(frame.payload)
            at = 0
            if own is not None:
                x[: own.part.count].copy_(own.x_TH)
                counts[0] = at = own.part.count
            for index, given in enumerate(bundle.handed_in, start=batches - len(bundle.handed_in)):
                start, stop = at * ungated.row_nbytes, (at + given.rows) * ungated.row_nbytes
                frame.payload[start:stop] = given.frame.payload[: stop - start]
                given.frame.release()
                counts[index] = given.rows
                at += given.rows
            return frame, ungated, batches
        layout = dispatch_layout(rows, hidden, bundle.top_k, self._dtype)
        frame = link.allocate(layout.nbytes)
        at = 0
        if own is not None:
            assert own.routed is not None and own.numbering is not None
            at = own.part.count
            own.part.rows = self._packing.pack(frame, layout, own.routed, to=own.numbering, count=at)
        for given in bundle.handed_in:
            copy_rows(frame.payload, layout, given.frame.payload, given.rows, at)
            given.frame.release()
            at += given.rows
        return frame, layout, bundle.top_k


def copy_rows(
    to: np.ndarray[tuple[int], np.dtype[np.uint8]],
    layout: DispatchLayout,
    payload: np.ndarray[tuple[int], np.dtype[np.uint8]],
    rows: int,
    at: int,
) -> None:
    """Copy the ``rows`` rows of a dispatch's ``payload`` to row ``at`` and on of another, laid out as ``layout``."""
    here = dispatch_layout(rows, layout.hidden, layout.top_k, layout.dtype)
    table = layout.top_k * 4
    to[at * layout.row_nbytes : (at + rows) * layout.row_nbytes] = payload[: here.x_nbytes]
    for start, from_start in ((layout.slots_at, here.slots_at), (layout.weights_at, here.weights_at)):
        to[start + at * table : start + (at + rows) * table] = payload[from_start : from_start + rows * table]

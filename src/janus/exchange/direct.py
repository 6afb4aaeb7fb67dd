"""The direct exchange: one dispatch frame per destination instance, one combine frame back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass

import torch

from janus.core.placement import Placement
from janus.core.scheduling import Assignment, Scheduler
from janus.errors import DispatchError, InstanceLost, LinkError, ReplicaMissing
from janus.exchange.layout import dispatch_layout, dtype_code
from janus.exchange.packing import Rows, packing_for
from janus.messages.control import DispatchRejected, Message
from janus.transport.frame import Kind
from janus.transport.link import InFrame, Link


@dataclass(slots=True)
class _Part:
    """What one instance was asked within a receipt."""

    instance: str
    #: Rows of the batch that went there; ``None`` = all of them, in order.
    rows: Rows
    answer: InFrame | None = None


@dataclass(slots=True, eq=False)
class DirectReceipt:
    """A dispatch in flight; ``parts`` is in the order in which the partial sums are added."""

    layer: int
    shape: torch.Size
    posted_ns: int
    done: asyncio.Future[None]
    parts: list[_Part]
    request_ids: list[int]
    outstanding: int
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class ExchangeTimes:
    """Where the time of exchanges went, summed since the start, in nanoseconds unless named otherwise."""

    dispatches: int = 0
    frames: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    schedule_ns: int = 0
    pack_ns: int = 0
    #: The part of ``pack_ns`` in which frames were handed to their links.
    send_ns: int = 0
    #: From the last post of a dispatch until its last answer is in and the step goes on.
    wait_ns: int = 0
    #: The part of ``wait_ns`` that the slowest instance says it computed.
    expert_ns: int = 0
    combine_ns: int = 0
    #: Distinct experts, and the most on one instance, summed over dispatches.
    activated: int = 0
    a_max: int = 0
    #: Dispatches whose scheduler looked whether its choice is the best possible, and those where it is.
    judged: int = 0
    proven: int = 0
    #: Shifts along augmenting paths.
    repairs: int = 0


class DirectExchange:
    """Also the handler of the links to the expert instances (all on the step loop; no locks needed)."""

    def __init__(
        self,
        *,
        links: dict[str, Link],
        scheduler: Scheduler,
        dtype: torch.dtype,
        dispatch_timeout_s: float,
        device: torch.device | None = None,
    ) -> None:
        """``device``: where activations come from and go to; the CPU unless given."""
        #: Links that are up, by instance name; whoever dials keeps them here.
        self.links = links
        self._scheduler = scheduler
        self._dtype = dtype
        self._code = dtype_code(dtype)
        self._packing = packing_for(dtype, device or torch.device("cpu"))
        self._timeout_s = dispatch_timeout_s
        self._placement: Placement | None = None
        self._ids = itertools.count(1)
        #: request id -> (receipt, index into its parts)
        self._pending: dict[int, tuple[DirectReceipt, int]] = {}
        self._changed = asyncio.Event()
        self._activated: dict[str, list[int]] = {}
        self.times = ExchangeTimes()

    # -- what the exchange plans with ----------------------------------------------------------------------------

    @property
    def placement(self) -> Placement | None:
        """The placement in force, ``None`` while there is none."""
        return self._placement

    def set_placement(self, placement: Placement | None) -> None:
        """Plan with ``placement`` from the next dispatch on; what is in flight is not touched."""
        if placement is not None and (self._placement is None or placement.epoch != self._placement.epoch):
            self._activated = {name: [0] * placement.num_layers for name in placement.instances}
        self._placement = placement
        self.links_changed()

    def links_changed(self) -> None:
        """A link came up or went away: whoever waits for readiness looks again."""
        self._changed.set()

    def missing(self) -> tuple[str, ...]:
        """Instances of the placement in force that are not linked."""
        if self._placement is None:
            return ()
        return tuple(name for name in self._placement.instances if not self._linked(name))

    def _linked(self, instance: str) -> bool:
        link = self.links.get(instance)
        return link is not None and not link.closed

    def ready(self) -> bool:
        return self._placement is not None and not self.missing()

    async def wait_ready(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ready():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            missing = self.missing()
            what = f"not linked to {', '.join(missing)}" if missing else "no placement covers every expert"
            raise InstanceLost(f"{what} after {timeout_s:g} s", instances=missing) from None

    async def wait_changed(self, timeout_s: float) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def activated(self) -> dict[str, list[int]]:
        return {name: list(counts) for name, counts in self._activated.items()}

    # -- dispatch ------------------------------------------------------------------------------------------------

    def dispatch(
        self, layer: int, x_TH: torch.Tensor, topk_ids_TK: torch.Tensor, topk_weights_TK: torch.Tensor
    ) -> DirectReceipt:
        placement = self._placement
        if placement is None:
            raise InstanceLost("no placement covers every expert")
        started = time.perf_counter_ns()
        assignment = self._scheduler(topk_ids_TK.cpu().numpy(), placement, layer)
        scheduled = time.perf_counter_ns()

        slots = placement.slots_per_instance
        parts: dict[int, _Part] = {}
        try:
            for index, (name, rows) in enumerate(zip(placement.instances, assignment.rows.tolist(), strict=True)):
                if rows:
                    request_id, chosen = self._post(
                        name,
                        placement.epoch,
                        layer,
                        rows=rows,
                        x_TH=x_TH,
                        assignment=assignment,
                        weights_TK=topk_weights_TK,
                        first=index * slots,
                        slots=slots,
                    )
                    parts[request_id] = _Part(name, chosen)
        except LinkError as error:
            # What was posted before is not waited for, and dropped when it is answered.
            raise InstanceLost(f"cannot dispatch to {error}", instances=(error.peer,)) from error
        posted = time.perf_counter_ns()

        # From here on the instances are at work: what is only bookkeeping comes last.
        loop = asyncio.get_running_loop()
        receipt = DirectReceipt(
            layer, x_TH.shape, posted, loop.create_future(), list(parts.values()), list(parts), len(parts)
        )
        for index, request_id in enumerate(receipt.request_ids):
            self._pending[request_id] = (receipt, index)
        receipt.timer = loop.call_later(self._timeout_s, self._expire, receipt)
        load = assignment.load.tolist()
        for name, activated in zip(placement.instances, load, strict=True):
            self._activated[name][layer] = activated
        times = self.times
        times.dispatches += 1
        times.activated += assignment.activated
        times.a_max += max(load)
        times.schedule_ns += scheduled - started
        if assignment.proven is not None:
            times.judged += 1
            times.proven += assignment.proven
            times.repairs += assignment.repairs
        times.pack_ns += posted - scheduled
        return receipt

    def _post(
        self,
        name: str,
        epoch: int,
        layer: int,
        *,
        rows: int,
        x_TH: torch.Tensor,
        assignment: Assignment,
        weights_TK: torch.Tensor,
        first: int,
        slots: int,
    ) -> tuple[int, Rows]:
        """Send one instance its rows; returns the request id, and which rows they are."""
        link = self.links.get(name)
        if link is None:
            raise LinkError(name, "is not linked")
        layout = dispatch_layout(rows, x_TH.shape[1], assignment.phys_ids.shape[1], self._dtype)
        frame = link.allocate(layout.nbytes)
        chosen = self._packing.pack(frame, layout, x_TH, assignment, weights_TK, first=first, slots=slots)
        request_id = next(self._ids)
        packed = time.perf_counter_ns()
        link.post(
            frame,
            kind=Kind.DISPATCH,
            request_id=request_id,
            epoch=epoch,
            layer=layer,
            dtype=self._code,
            top_k=layout.top_k,
            rows=rows,
            cols=layout.hidden,
            deadline_ms=int(self._timeout_s * 1000),
        )
        times = self.times
        times.send_ns += time.perf_counter_ns() - packed
        times.frames += 1
        times.bytes_out += layout.nbytes
        return request_id, chosen

    # -- combine -------------------------------------------------------------------------------------------------

    async def combine(self, receipt: DirectReceipt, residual_TH: torch.Tensor | None = None) -> torch.Tensor:
        try:
            await receipt.done
        finally:
            self._packing.prime()
            self._forget(receipt)
        started = time.perf_counter_ns()
        answers = [(part.answer, part.rows) for part in receipt.parts if part.answer is not None]
        result = self._packing.combine(answers, receipt.shape, residual_TH)
        slowest_us = 0
        for answer, _ in answers:
            slowest_us = max(slowest_us, answer.header.elapsed_us)
            answer.release()
        times = self.times
        times.combine_ns += time.perf_counter_ns() - started
        times.wait_ns += started - receipt.posted_ns
        times.expert_ns += 1000 * slowest_us
        return result

    def _forget(self, receipt: DirectReceipt) -> None:
        for request_id in receipt.request_ids:
            self._pending.pop(request_id, None)
        if receipt.timer is not None:
            receipt.timer.cancel()

    def _fail(self, receipt: DirectReceipt, error: DispatchError) -> None:
        self._forget(receipt)
        if not receipt.done.done():
            receipt.done.set_exception(error)
            receipt.done.exception()  # a receipt that nobody combines any more is no "never retrieved" warning

    def _expire(self, receipt: DirectReceipt) -> None:
        late = tuple(part.instance for part in receipt.parts if part.answer is None)
        self._fail(
            receipt,
            InstanceLost(
                f"{', '.join(late)}: no answer for MoE layer {receipt.layer} within {self._timeout_s:g} s",
                instances=late,
            ),
        )

    # -- LinkHandler ---------------------------------------------------------------------------------------------

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """Take a combine frame in; one that nobody waits for any more is dropped."""
        header = frame.header
        found = self._pending.pop(header.request_id, None) if header.kind is Kind.COMBINE else None
        if found is None:
            frame.release()
            return
        receipt, index = found
        part = receipt.parts[index]
        expected = receipt.shape[0] if part.rows is None else len(part.rows)
        if (header.rows, header.cols, header.dtype) != (expected, receipt.shape[1], self._code):
            frame.release()
            self._fail(
                receipt,
                InstanceLost(
                    f"{part.instance}: combine frame is {header.rows}x{header.cols} of type {header.dtype}, "
                    f"expected {expected}x{receipt.shape[1]} of type {self._code}",
                    instances=(part.instance,),
                ),
            )
            return
        part.answer = frame
        self.times.bytes_in += header.payload_len
        receipt.outstanding -= 1
        if receipt.outstanding == 0 and not receipt.done.done():
            receipt.done.set_result(None)

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """Take a rejection in; no other message reaches this side of an exchange link."""
        found = self._pending.get(request_id)
        if found is None or not isinstance(message, DispatchRejected):
            return
        receipt, index = found
        name = receipt.parts[index].instance
        kind = ReplicaMissing if message.code == "replica_missing" else InstanceLost
        self._fail(receipt, kind(f"{name}: {message.problem}", instances=(name,)))

    def on_closed(self, link: Link, error: LinkError) -> None:
        """Fail at once what waits for this peer."""
        name = link.peer.instance
        waiting = {
            id(receipt): receipt for receipt, index in self._pending.values() if receipt.parts[index].instance == name
        }
        for receipt in waiting.values():
            self._fail(receipt, InstanceLost(f"{name}: {error.problem}", instances=(name,)))
        self.links_changed()

    async def close(self) -> None:
        for receipt, _ in list(self._pending.values()):
            self._fail(receipt, InstanceLost("the exchange is closing"))

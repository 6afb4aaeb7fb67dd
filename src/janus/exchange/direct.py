"""The direct exchange: one dispatch frame per destination instance, one combine frame back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from janus.core.placement import Placement
from janus.core.scheduling import Scheduler
from janus.errors import DispatchError, InstanceLost, LinkError, ReplicaMissing
from janus.exchange.layout import DispatchLayout, dtype_code, dtype_of, matrix
from janus.messages.control import DispatchRejected, Message
from janus.transport.frame import Kind
from janus.transport.link import InFrame, Link


@dataclass(slots=True)
class _Part:
    """What one instance was asked within a receipt."""

    instance: str
    #: Rows of the batch that went there; ``None`` = all of them, in order.
    rows: npt.NDArray[np.int64] | None
    answer: InFrame | None = None


@dataclass(slots=True, eq=False)
class DirectReceipt:
    """A dispatch in flight; ``parts`` is in the order in which the partial sums are added."""

    layer: int
    shape: torch.Size
    device: torch.device
    posted_ns: int
    done: asyncio.Future[None]
    parts: list[_Part] = field(default_factory=list)
    request_ids: list[int] = field(default_factory=list)
    outstanding: int = 0
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
    #: From the last post of a dispatch to its last answer.
    wait_ns: int = 0
    #: The part of ``wait_ns`` that the slowest instance says it computed.
    expert_ns: int = 0
    combine_ns: int = 0


class DirectExchange:
    """Also the handler of the links to the expert instances (all on the step loop; no locks needed)."""

    def __init__(
        self,
        *,
        links: dict[str, Link],
        scheduler: Scheduler,
        dtype: torch.dtype,
        dispatch_timeout_s: float,
    ) -> None:
        #: Links that are up, by instance name; whoever dials keeps them here.
        self.links = links
        self._scheduler = scheduler
        self._dtype = dtype
        self._code = dtype_code(dtype)
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

        loop = asyncio.get_running_loop()
        receipt = DirectReceipt(layer, x_TH.shape, x_TH.device, 0, loop.create_future())
        weights_TK = topk_weights_TK.cpu().numpy()
        try:
            for index, (name, activated) in enumerate(zip(placement.instances, assignment.load.tolist(), strict=True)):
                self._activated[name][layer] = activated
                if activated:
                    slots_TK = _slots_of(assignment.phys_ids, index, placement.slots_per_instance)
                    self._post(receipt, name, placement.epoch, x_TH=x_TH, slots_TK=slots_TK, weights_TK=weights_TK)
        except LinkError as error:
            self._forget(receipt)
            raise InstanceLost(f"cannot dispatch to {error}", instances=(error.peer,)) from error
        receipt.timer = loop.call_later(self._timeout_s, self._expire, receipt)
        receipt.posted_ns = time.perf_counter_ns()
        times = self.times
        times.dispatches += 1
        times.schedule_ns += scheduled - started
        times.pack_ns += receipt.posted_ns - scheduled
        return receipt

    def _post(
        self,
        receipt: DirectReceipt,
        name: str,
        epoch: int,
        *,
        x_TH: torch.Tensor,
        slots_TK: npt.NDArray[np.int32],
        weights_TK: npt.NDArray[np.float32],
    ) -> None:
        link = self.links.get(name)
        if link is None:
            raise LinkError(name, "is not linked")
        touched_T = slots_TK.max(axis=1) >= 0
        rows = None if touched_T.all() else np.flatnonzero(touched_T)
        count = x_TH.shape[0] if rows is None else len(rows)
        layout = DispatchLayout(count, x_TH.shape[1], slots_TK.shape[1], self._dtype)
        frame = link.allocate(layout.nbytes)
        x, slots, weights = layout.views(frame.payload)
        if rows is None:
            x.copy_(x_TH)
            np.copyto(slots, slots_TK)
            np.copyto(weights, weights_TK)
        else:
            x.copy_(x_TH[torch.from_numpy(rows).to(x_TH.device)])
            np.take(slots_TK, rows, axis=0, out=slots)
            np.take(weights_TK, rows, axis=0, out=weights)
        request_id = next(self._ids)
        packed = time.perf_counter_ns()
        link.post(
            frame,
            kind=Kind.DISPATCH,
            request_id=request_id,
            epoch=epoch,
            layer=receipt.layer,
            dtype=self._code,
            top_k=layout.top_k,
            rows=count,
            cols=layout.hidden,
            deadline_ms=int(self._timeout_s * 1000),
        )
        self.times.send_ns += time.perf_counter_ns() - packed
        self._pending[request_id] = (receipt, len(receipt.parts))
        receipt.parts.append(_Part(name, rows))
        receipt.request_ids.append(request_id)
        receipt.outstanding += 1
        self.times.frames += 1
        self.times.bytes_out += layout.nbytes

    # -- combine -------------------------------------------------------------------------------------------------

    async def combine(self, receipt: DirectReceipt) -> torch.Tensor:
        try:
            await receipt.done
        finally:
            self._forget(receipt)
        started = time.perf_counter_ns()
        result = _sum(receipt.parts, receipt.shape, receipt.device).to(self._dtype)
        for part in receipt.parts:
            if part.answer is not None:
                part.answer.release()
        times = self.times
        times.combine_ns += time.perf_counter_ns() - started
        times.wait_ns += started - receipt.posted_ns
        times.expert_ns += 1000 * max((p.answer.header.elapsed_us for p in receipt.parts if p.answer), default=0)
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


def _slots_of(phys_TK: npt.NDArray[np.int32], index: int, slots_per_instance: int) -> npt.NDArray[np.int32]:
    """Return int32[T, K]: the slots of instance ``index`` among physical ids, -1 for those of other instances."""
    slots_TK = phys_TK - np.int32(index * slots_per_instance)
    # Seen as unsigned, the ids of lower instances are huge: one comparison finds both sides.
    slots_TK[slots_TK.view(np.uint32) >= slots_per_instance] = -1
    return slots_TK


def _sum(parts: list[_Part], shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Add the answers of ``parts`` up in their order, in float32; the result shares no memory with them."""
    total_TH: torch.Tensor | None = None
    for part in parts:
        assert part.answer is not None  # ``done`` resolves only when every answer is in
        header = part.answer.header
        y = matrix(part.answer.payload, header.rows, header.cols, dtype_of(header.dtype)).to(device)
        if len(parts) == 1:
            return y.clone() if device.type == "cpu" else y
        if total_TH is None:
            total_TH = torch.zeros(shape, dtype=torch.float32, device=device)
        if part.rows is None:
            total_TH.add_(y)
        else:
            total_TH.index_add_(0, torch.from_numpy(part.rows).to(device), y.float())
    return torch.zeros(shape, device=device) if total_TH is None else total_TH

"""Posting: the frames of this instance's own dispatches, what it hands in to others, and what others hand in to it."""

from __future__ import annotations

import itertools
import time

import structlog
import torch

from janus.core.exchange_cost import DispatchShape
from janus.core.exchange_routes import GATHERED_MOST_BYTES, MODES, gathers, leader
from janus.core.placement import Placement
from janus.core.scheduling import Assignment
from janus.core.slowness import Slowness
from janus.errors import DispatchError, InstanceLost, LinkError, ReplicaMissing
from janus.exchange.bundle import Batch
from janus.exchange.bundles import Bundles
from janus.exchange.choice import ModeChoice
from janus.exchange.endurance import Endurance
from janus.exchange.layout import UngatedLayout, address_of, dispatch_layout, dtype_code
from janus.exchange.packing import Numbering, Routed, packing_for
from janus.exchange.plan import Plan
from janus.exchange.receipts import Part, Receipt, Waiter, reject
from janus.transport.contract import InFrame
from janus.transport.frame import Flags, Kind
from janus.transport.link import Link

log = structlog.get_logger(__name__)

#: In Python 3.11, ``Kind.DISPATCH`` is a Python call.
_DISPATCH = Kind.DISPATCH


class Posting(Endurance):
    """The part of an exchange that fills frames and hands them to links. All on the step loop."""

    def __init__(
        self,
        *,
        own: str,
        links: dict[str, Link],
        siblings: dict[str, Link] | None,
        choice: ModeChoice | None,
        timeout_s: float,
        slowness: Slowness,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(own=own, links=links, siblings=siblings, choice=choice, timeout_s=timeout_s, slowness=slowness)
        self._dtype = dtype
        self._code = dtype_code(dtype)
        self._packing = packing_for(dtype, device)
        self._deadline_ms = int(timeout_s * 1000)
        self._ids = itertools.count(1)
        #: What every dispatch says: whether the experts gate, and how they schedule then.
        self._flags = 0

    def _shape(self, placement: Placement, routed: Routed | None, x_TH: torch.Tensor) -> DispatchShape:
        """Return what the cost model needs."""
        tokens, groups = x_TH.shape[0], placement.groups
        row_bytes = x_TH.shape[1] * self._dtype.itemsize
        if routed is None:
            rows = [tokens] * placement.num_instances
            full = row_bytes
        else:
            rows = routed.assignment.rows.tolist()
            full = row_bytes + 8 * routed.assignment.phys_ids.shape[1]
        # A token that goes to several instances of a node goes there once; how often that is so is not counted here.
        node_rows = [min(tokens, sum(rows[i] for i in group)) for group in groups]
        return DispatchShape(
            instances=sum(count > 0 for count in rows),
            instance_bytes=sum(rows) * full,
            instance_answer_bytes=sum(rows) * row_bytes,
            nodes=sum(count > 0 for count in node_rows),
            node_bytes=sum(node_rows) * full,
            node_answer_bytes=sum(node_rows) * row_bytes,
            batch_bytes=tokens * row_bytes,
            largest_node=max(len(group) for group in groups),
            members=len(self._members),
            sources=self._sources,
        )

    def _post_all(self, receipt: Receipt, plan: Plan, x_TH: torch.Tensor, routed: Routed | None) -> None:
        mode, epoch, layer = receipt.decision.mode, plan.placement.epoch, receipt.layer
        batch_bytes = x_TH.numel() * self._dtype.itemsize
        if gathers(mode, members=len(self._members), batch_bytes=batch_bytes):
            by = leader(self._members, layer)
            sibling = self.siblings.get(by)
            if sibling is not None and not sibling.closed and not self._passes_over(by):
                receipt.outstanding = 1
                receipt.handed_to = by
                self._hand_in(sibling, receipt, x_TH, routed, epoch)
            else:
                receipt.outstanding = 1
                top_k = 0 if routed is None else routed.assignment.phys_ids.shape[1]
                if routed is not None:
                    # The scheduler's arrays are its own, and these rows are packed later.
                    chosen = routed.assignment
                    ids = chosen.phys_ids.copy()
                    kept = Assignment(ids, chosen.load, chosen.rows, chosen.activated, phys_address=address_of(ids))
                    routed = Routed(x_TH, kept, routed.weights_TK)
                key = (mode, layer, plan, top_k, self._flags, x_TH.shape[1])
                batch = Batch(x_TH.shape[0], routed, x_TH, receipt=receipt)
                self._aggregator().add(key, batch, deadline_ms=self._deadline_ms)
            return
        parts = receipt.parts
        receipt.per_instance = mode != "two-phase"
        turn = layer if batch_bytes <= GATHERED_MOST_BYTES else layer + self._source
        for to, numbering in zip(plan.destinations, plan.numberings, strict=True):
            if routed is None:
                count = x_TH.shape[0]
            elif to.is_node:
                count = self._packing.count(routed.assignment, numbering)
            else:
                count = int(routed.assignment.rows[to.instances[0]])
            if not count:
                continue
            relay = to.relay(turn)
            link = self.links.get(relay)
            if link is None:
                raise LinkError(relay, "is not linked")
            part = Part(receipt, relay, to.group, count, None)
            parts.append(part)
            self._times.frames += 1
            flags = self._flags | Flags.NODE if to.is_node else self._flags
            self._post(link, part, x_TH, routed, numbering, epoch=epoch, flags=flags, left_out=plan.left_out)
        receipt.outstanding = len(parts)

    def _hand_in(self, link: Link, receipt: Receipt, x_TH: torch.Tensor, routed: Routed | None, epoch: int) -> None:
        """Give all rows to the member that posts for the node in this layer."""
        part = Part(receipt, link.peer.instance, 0, x_TH.shape[0], None)
        receipt.parts.append(part)
        self._times.hand_ins += 1
        flags, way = self._flags | Flags.HAND_IN, MODES.index(receipt.decision.mode)
        self._post(link, part, x_TH, routed, None, epoch=epoch, flags=flags, target=way)

    def _post(
        self,
        link: Link,
        part: Part,
        x_TH: torch.Tensor,
        routed: Routed | None,
        numbering: Numbering | None,
        *,
        epoch: int,
        flags: int,
        target: int = 0,
        left_out: int = 0,
    ) -> None:
        """Send this instance's rows in a frame of their own; without a ``numbering``, all of them as they are."""
        receipt, count, hidden = part.receipt, part.count, x_TH.shape[1]
        if routed is None:
            ungated = UngatedLayout(count, hidden, 1, self._dtype)
            nbytes, top_k = ungated.nbytes, 1
            frame = link.allocate(nbytes)
            x, batches = ungated.views(frame.payload)
            x.copy_(x_TH)
            batches[0] = count
            ungated.left_out(frame.payload)[0] = left_out
        else:
            layout = dispatch_layout(count, hidden, routed.assignment.phys_ids.shape[1], self._dtype)
            nbytes, top_k = layout.nbytes, layout.top_k
            frame = link.allocate(nbytes)
            if numbering is None:
                self._packing.pack_all(frame, layout, routed)
            else:
                part.rows = self._packing.pack(frame, layout, routed, to=numbering, count=count)
        request_id = next(self._ids)
        self._pending[request_id] = part
        receipt.request_ids.append(request_id)
        packed = time.perf_counter_ns()
        link.post(
            frame,
            kind=_DISPATCH,
            request_id=request_id,
            epoch=epoch,
            layer=receipt.layer,
            dtype=self._code,
            top_k=top_k,
            rows=count,
            cols=hidden,
            deadline_ms=self._deadline_ms,
            flags=flags,
            target=target,
        )
        times = self._times
        times.send_ns += time.perf_counter_ns() - packed
        times.bytes_out += nbytes

    # -- posting for others --------------------------------------------------------------------------------------

    def _aggregator(self) -> Bundles:
        if self._bundles is None:
            self._bundles = Bundles(
                own=self.own,
                packing=self._packing,
                dtype=self._dtype,
                dtype_code=self._code,
                links=self.links,
                await_answer=self._await_answer,
                forget_answers=self._forget_answers,
                abandon_answers=self._abandon,
                slowness=self._slowness,
                gives_up=self._gives_up,
            )
        return self._bundles

    def _await_answer(self, waiter: Waiter) -> int:
        request_id = next(self._ids)
        self._pending[request_id] = waiter
        return request_id

    def _take_hand_in(self, link: Link, frame: InFrame) -> None:
        header = frame.header
        placement = self._placements.get(header.epoch)
        try:
            if placement is None:
                raise ReplicaMissing(f"{self.own} knows no epoch {header.epoch}")
            if not 0 < header.target < len(MODES):
                raise ValueError(f"the hand-in is to go way {header.target}, there are {len(MODES)}")
            mode = MODES[header.target]
            plan = self._plan(self._usable_of(placement) or placement, mode)
            self._aggregator().hand_in(mode, plan, link, frame, deadline_ms=self._deadline_ms)
        except ValueError as error:
            self._refuse(link, frame, InstanceLost(f"{self.own}: {error}", instances=(self.own,)))
        except DispatchError as error:
            self._refuse(link, frame, error)

    @staticmethod
    def _refuse(link: Link, frame: InFrame, error: DispatchError) -> None:
        log.warning("hand_in_refused", peer=link.peer.instance, problem=str(error))
        request_id = frame.header.request_id
        frame.release()
        reject(link, request_id, error)

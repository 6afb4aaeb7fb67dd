"""The exchange with experts in other processes: direct, aggregated or in two phases, chosen dispatch by dispatch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

import structlog
import torch

from janus.core.exchange_cadence import Cadence
from janus.core.placement import Placement
from janus.core.scheduling import SCHEDULERS, Assignment, Scheduler
from janus.core.slowness import Slowness, is_timed
from janus.errors import DispatchError, InstanceLost, LinkError, ReplicaMissing
from janus.exchange.choice import Decision, ModeChoice
from janus.exchange.endurance import ATTEMPTS, PASSED_OVER_FOR
from janus.exchange.packing import Routed
from janus.exchange.posting import Posting
from janus.exchange.receipts import Asked, DispatchRefused, Receipt
from janus.exchange.times import ExchangeTimes
from janus.messages.control import DispatchRejected, ExchangeWay, Message
from janus.transport.frame import Flags, Kind
from janus.transport.link import InFrame, Link

log = structlog.get_logger(__name__)

#: In Python 3.11, ``Kind.COMBINE`` is a Python call.
_COMBINE = Kind.COMBINE

#: The scheduler's number in the flags of a dispatch that the experts gate.
SCHEDULER_NAMES = tuple(sorted(SCHEDULERS))
SCHEDULER_SHIFT = 8


#: How a layer goes that is sent again.
_DIRECT = Decision("direct")


def _post(link: Link, news: ExchangeWay) -> None:
    with contextlib.suppress(LinkError):  # whoever does not hear it decides alone
        link.post_message(news)


class RemoteExchange(Posting):
    """Also the handler of its links, to expert instances and to the other attention instances of the node.

    A layer whose experts did not all answer is sent again to other replicas while there are any.

    All on the step loop; no locks needed.
    """

    def __init__(
        self,
        *,
        own: str,
        links: dict[str, Link],
        siblings: dict[str, Link] | None = None,
        scheduler: Scheduler,
        scheduler_name: str = "aebs",
        dtype: torch.dtype,
        dispatch_timeout_s: float,
        device: torch.device | None = None,
        choice: ModeChoice | None = None,
        experts_gate: bool = False,
        slowness: Slowness | None = None,
    ) -> None:
        """Args:
        own: this instance's name.
        links: links to expert instances that are up, by name; whoever dials keeps them here.
        siblings: links to the other attention instances of this node, likewise.
        scheduler: picks replicas.
        scheduler_name: what the experts use when they gate.
        dtype: of activations.
        dispatch_timeout_s: how long experts may take.
        device: where activations come from and go to; the CPU unless given.
        choice: picks the way; always direct unless given.
        experts_gate: whether expert instances gate and schedule.
        slowness: says when an instance is late, and for how long it is left out then.
        """
        super().__init__(
            own=own,
            links=links,
            siblings=siblings,
            choice=choice,
            timeout_s=dispatch_timeout_s,
            slowness=slowness or Slowness(timeout_s=dispatch_timeout_s),
            dtype=dtype,
            device=device or torch.device("cpu"),
        )
        self._experts_gate = experts_gate
        self._scheduler = scheduler
        self._gate_flags = Flags.EGATE | SCHEDULER_NAMES.index(scheduler_name) << SCHEDULER_SHIFT
        self._flags = self._gate_flags if experts_gate else 0
        self._cadence: Cadence[Decision] = Cadence()
        self._activated: dict[str, list[int]] = {}
        #: The expert instance that passes this node's choices on to other attention nodes, and theirs to this one.
        self._speaker: Link | None = None

    # -- what the exchange plans with ----------------------------------------------------------------------------

    @property
    def experts_gate(self) -> bool:
        return self._experts_gate

    @property
    def times(self) -> ExchangeTimes:
        """Sums since the start."""
        times, bundles, choice = self._times, self._bundles, self.choice
        if bundles is None:
            return replace(times, trials=choice.trials, changes=choice.changes)
        return replace(
            times,
            trials=choice.trials,
            changes=choice.changes,
            frames=times.frames + bundles.frames,
            bundles=bundles.sent,
            bytes_out=times.bytes_out + bundles.bytes_out,
            linger_ns=int(bundles.lingered_s * 1e9),
        )

    def set_placement(self, placement: Placement | None) -> None:
        """Plan with ``placement`` from the next dispatch on; what is in flight is not touched."""
        current = self._placement
        if placement is not None and (current is None or placement.epoch != current.epoch):
            self._activated = {name: [0] * placement.num_layers for name in placement.instances}
        super().set_placement(placement)

    def set_gate(self, *, experts: bool) -> None:
        """Let the experts' side gate, or this one, from the next dispatch on."""
        self._experts_gate = experts
        self._flags = self._gate_flags if experts else 0
        self._left.clear()
        self._look(again=True)

    def activated(self) -> dict[str, list[int]]:
        return {name: list(counts) for name, counts in self._activated.items()}

    # -- dispatch ------------------------------------------------------------------------------------------------

    def dispatch(
        self,
        layer: int,
        x_TH: torch.Tensor,
        topk_ids_TK: torch.Tensor | None,
        topk_weights_TK: torch.Tensor | None,
    ) -> Receipt:
        loop = asyncio.get_running_loop()
        asked = Asked(x_TH, topk_ids_TK, topk_weights_TK, loop.time() + self._timeout_s)
        return self._attempt(layer, asked, loop)

    def _attempt(self, layer: int, asked: Asked, loop: asyncio.AbstractEventLoop) -> Receipt:
        """Send a layer, for the first time or again."""
        x_TH = asked.x_TH
        if self._slowness.suspects and time.monotonic() >= self._slowness.due_s:
            self._readmit()
        # Without some experts it is up to this batch whether it needs them.
        placement = self._usable or self._placement
        if placement is None:
            raise InstanceLost("no placement covers every expert")
        asked.attempts += 1
        asked.epoch = placement.epoch
        started = time.perf_counter_ns()
        routed = None
        if asked.topk_ids_TK is not None and asked.topk_weights_TK is not None:
            ids_TK = asked.topk_ids_TK.cpu().numpy()
            routed = Routed(x_TH, self._scheduler(ids_TK, placement, layer, self._load0), asked.topk_weights_TK)
        scheduled = time.perf_counter_ns()
        decision = self._decide(layer, asked, placement, routed)
        receipt = Receipt(
            asked,
            layer,
            x_TH.shape,
            self._code,
            decision,
            scheduled,
            scheduled,
            loop.create_future(),
        )
        try:
            self._post_all(receipt, self._plan(placement, decision.mode), x_TH, routed)
        except LinkError as error:
            # What was posted before is not waited for, and dropped when it is answered.
            lost = InstanceLost(f"cannot dispatch to {error}", instances=(error.peer,))
            self._forget(receipt)
            receipt.fail(lost)
            if self._can_do_without(error.peer, asked):
                return self._attempt(layer, asked, loop)
            raise lost from error
        receipt.posted_ns = posted = time.perf_counter_ns()
        # From here on the instances are at work: what is only bookkeeping comes last.
        self._watch(receipt, loop)
        times = self._times
        times.dispatches += 1
        if is_timed(times.dispatches):
            receipt.arrivals = []
        times.schedule_ns += scheduled - started
        times.pack_ns += posted - scheduled
        if routed is not None:
            self._count(routed.assignment, placement, layer)
        return receipt

    def _can_do_without(self, peer: str, asked: Asked) -> bool:
        """Return whether to try again when ``peer`` takes no frame: it is gone, is going, or consumes nothing."""
        self._look()
        if asked.attempts >= ATTEMPTS:
            return False
        if peer in self.siblings:
            self._passed_over[peer] = PASSED_OVER_FOR
        elif self._linked(peer) and not self._suspect((peer,), "takes no frame"):
            return False
        if self._usable is None:
            return False
        self._times.resent("not_posted")
        return True

    def _decide(self, layer: int, asked: Asked, placement: Placement, routed: Routed | None) -> Decision:
        """Return which way a layer goes, and learn from how long ago the one before it went."""
        cadence, choice, rows = self._cadence, self.choice, asked.x_TH.shape[0]
        stream = id(asyncio.current_task())  # which runs one step at a time
        if asked.attempts > 1:
            self._avoiding = max(0, self._avoiding - 1)
            cadence.interrupted(stream)
            return _DIRECT
        now_s = time.perf_counter()
        if (ended := cadence.ended(stream, layer=layer, rows=rows, now_s=now_s)) is not None:
            before, seconds = ended
            self._times.followed(before.mode, after_ns=int(seconds * 1e9))
            choice.took(before, seconds)
        if self._avoiding:
            self._avoiding -= 1
            decision = _DIRECT
        else:
            batch_bytes = rows * asked.x_TH.shape[1] * self._dtype.itemsize
            decision = choice.decide(batch_bytes, lambda: self._shape(placement, routed, asked.x_TH))
            if decision.predicted_s and (self._elsewhere or len(self._members) > 1):
                self._say(decision)
        cadence.begun(stream, layer=layer, rows=rows, now_s=now_s, mark=decision)
        return decision

    def _say(self, decision: Decision) -> None:
        """Tell the other attention instances what this one has chosen, when it is the first and that is news."""
        if self._elsewhere and self._own_is_first():
            speaker = self._speaker
            if speaker is None or speaker.closed:
                # All nodes find the same one, as long as they see the same links.
                names = () if self._placement is None else self._placement.instances
                speaker = self._speaker = next((self.links[name] for name in names if self._linked(name)), None)
                if speaker is not None:  # it passes on what it hears to those that it has heard of
                    _post(speaker, ExchangeWay(size=decision.size, way=decision.mode))
        news = self.choice.news(decision)
        if news is None:
            return
        for link in self.siblings.values():
            _post(link, news)
        if self._elsewhere and self._speaker is not None:
            _post(self._speaker, news)

    def _own_is_first(self) -> bool:
        return self._members[0] == self.own

    def _take_way(self, link: Link, message: ExchangeWay) -> None:
        """Do as an instance before this one does, and let the siblings know what came from another node."""
        by = message.by or link.peer.instance
        if by >= self.own:  # in the order of ``_members``
            return
        self.choice.told(message, by=by)
        if link.peer.role == "expert":
            for sibling in self.siblings.values():
                _post(sibling, ExchangeWay(size=message.size, way=message.way, by=by))

    def _count(self, assignment: Assignment, placement: Placement, layer: int) -> None:
        load, times = assignment.load.tolist(), self._times
        for name, activated in zip(placement.instances, load, strict=True):
            self._activated[name][layer] = activated
        times.activated += assignment.activated
        times.a_max += max(load)
        if assignment.proven is not None:
            times.judged += 1
            times.proven += assignment.proven
            times.repairs += assignment.repairs

    # -- combine -------------------------------------------------------------------------------------------------

    async def combine(self, receipt: Receipt, residual_TH: torch.Tensor | None = None) -> torch.Tensor:
        while True:
            try:
                await receipt.done
                break
            except DispatchError as error:
                if not await self._may_send_again(receipt, error):
                    raise
            except BaseException:
                receipt.fail(InstanceLost("the step was cancelled"))  # what arrives from now on belongs to nobody
                receipt.release()
                raise
            finally:
                self._packing.prime()
                self._forget(receipt)
            receipt = self._attempt(receipt.layer, receipt.asked, asyncio.get_running_loop())
        started = time.perf_counter_ns()
        answers, ends = receipt.answers()
        result = self._packing.combine(answers, ends, receipt.shape, residual_TH)
        slowest_us = nbytes = 0
        for frame in receipt.frames:
            header = frame.header
            nbytes += header.payload_len
            slowest_us = max(slowest_us, header.elapsed_us)
        if receipt.arrivals is not None:
            self._learn(receipt)
        receipt.release()
        times = self._times
        waited, slowest_ns = started - receipt.posted_ns, 1000 * slowest_us
        times.combine_ns += time.perf_counter_ns() - started
        times.wait_ns += waited
        times.bytes_in += nbytes
        times.expert_ns += slowest_ns
        # From the first byte packed: a way that posts more frames spends its time there too.
        actual_ns = max(0, started - receipt.begun_ns - slowest_ns)
        decision = receipt.decision
        times.chosen(decision.mode, actual_ns=actual_ns, predicted_ns=int(decision.predicted_s * 1e9))
        return result

    # -- LinkHandler ---------------------------------------------------------------------------------------------

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """Take a combine frame or a hand-in; an answer that nobody waits for any more is dropped."""
        header = frame.header
        if header.kind is _COMBINE:
            waiter = self._pending.pop(header.request_id, None)
            if waiter is None:
                frame.release()
                if self._abandoned:
                    self._came_late(header.request_id)
            else:
                waiter.answered(frame)
        elif header.flags & Flags.HAND_IN and link.peer.role == "attention":
            self._take_hand_in(link, frame)
        else:
            log.warning("unexpected_frame", peer=link.peer.instance, kind=header.kind.name)
            frame.release()

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """Take a rejection in, or what the first attention instance has chosen."""
        if isinstance(message, ExchangeWay):
            self._take_way(link, message)
            return
        if not isinstance(message, DispatchRejected):
            log.warning("unexpected_message", peer=link.peer.instance, message=type(message).__name__)
            return
        waiter = self._pending.pop(request_id, None)
        if waiter is None:
            if self._abandoned:
                self._came_late(request_id)
            return
        peer = link.peer.instance
        names = tuple(message.instances) or (peer,)
        if peer in names and link.peer.role == "attention":
            self._passed_over[peer] = PASSED_OVER_FOR
        problem = f"{peer}: {message.problem}"
        if message.code == "replica_missing":
            waiter.failed(ReplicaMissing(problem, instances=names))
        else:
            waiter.failed(DispatchRefused(problem, instances=names, code=message.code))

    def on_closed(self, link: Link, error: LinkError) -> None:
        """Fail at once what waits for this peer."""
        name = link.peer.instance
        if self._bundles is not None:
            self._bundles.forget(link)
        current = self.links.get(name) or self.siblings.get(name)
        if current is not None and current is not link:
            return  # the link that the other member dialled: nothing of ours is answered on it
        if self.siblings.get(name) is link:
            del self.siblings[name]
        self._abandoned = {known: via for known, via in self._abandoned.items() if via != name}
        lost = InstanceLost(f"{name}: {error.problem}", instances=(name,))
        for request_id in [known for known, waiter in self._pending.items() if waiter.via == name]:
            waiter = self._pending.pop(request_id, None)
            if waiter is not None:
                waiter.failed(lost)
        self.links_changed()

    async def close(self) -> None:
        self._closed = True
        if self._bundles is not None:
            self._bundles.close()
        pending, self._pending = self._pending, {}
        for waiter in pending.values():
            waiter.failed(InstanceLost("the exchange is closing"))

"""What an exchange does when expert instances are lost or late: send the layer again, without them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import structlog

from janus.core.exchange_routes import Mode
from janus.core.slowness import Slowness
from janus.errors import DispatchError, InstanceLost, ReplicaMissing
from janus.exchange.bundle import Bundle, Post
from janus.exchange.bundles import GRACE_S, LOOKS, Bundles
from janus.exchange.choice import ModeChoice
from janus.exchange.receipts import AnswerLate, DispatchRefused, Part, Receipt, Waiter
from janus.exchange.suspicion import Suspicion
from janus.exchange.times import Resent
from janus.transport.link import Link

log = structlog.get_logger(__name__)

#: How often a layer is sent at most, within its deadline; then the step fails.
ATTEMPTS = 4
#: How long a stale epoch may take to be replaced before the step fails.
_NEWER_WAIT_S = 0.25
#: A member that could not post for this one is passed over for so many dispatches: it may have just come, and know no
#: placement yet, or not reach an expert instance that others do reach.
PASSED_OVER_FOR = 16
#: A way over relays that has failed, or was late, is avoided for so many dispatches: who is to blame shows when each
#: instance is asked itself.
_AVOIDED_FOR = 16
#: Frames whose answer is still noticed, though nobody waits for it.
_ABANDONED_KEPT = 256
#: Rows that are handed in wait for others, and whoever posts them is the first to say which expert instance is late.
_HAND_IN_PATIENCE = 1.5
#: Looks at a dispatch that is late, after which whoever it waits for is told to be late.
_LATE_ROUNDS = 2


class Endurance(Suspicion):
    """The part of an exchange that judges, and keeps the books of what is on its way. All on the step loop."""

    def __init__(
        self,
        *,
        own: str,
        links: dict[str, Link],
        siblings: dict[str, Link] | None,
        choice: ModeChoice | None,
        timeout_s: float,
        slowness: Slowness,
    ) -> None:
        super().__init__(own=own, links=links, siblings=siblings, choice=choice, slowness=slowness)
        self._timeout_s = timeout_s
        #: request id -> who waits for the answer
        self._pending: dict[int, Waiter] = {}
        #: request id -> who has not answered when the dispatch was sent again
        self._abandoned: dict[int, str] = {}
        #: Members that are passed over, and how many dispatches still.
        self._passed_over: dict[str, int] = {}
        #: Dispatches that are still sent to each instance itself.
        self._avoiding = 0
        self._closed = False
        self._bundles: Bundles | None = None

    # -- what others want to know --------------------------------------------------------------------------------

    def suspects(self) -> tuple[str, ...]:
        """Expert instances whose answers are too late, by name: left out, or waited for because nobody else has their
        experts. May be called from another thread.
        """
        waited_for = {
            waiter.via
            for waiter in list(self._pending.values())
            if isinstance(waiter, Part) and waiter.receipt.per_instance and waiter.receipt.rounds >= _LATE_ROUNDS
        }
        return tuple(sorted(self._slowness.suspects | waited_for))

    def oldest_epoch(self) -> int:
        """The oldest epoch that a dispatch in flight here may name, own or handed in; the one in force without any.

        What an expert instance may still compute for a dispatch that was given up is not counted: nobody waits for it,
        and the instance checks the slots against the epoch before it computes. 0 without a placement. May be called
        from another thread.
        """
        placement, bundles = self._placement, self._bundles
        epochs = [waiter.epoch for waiter in list(self._pending.values())]
        if bundles is not None:
            epochs += [bundle.plan.placement.epoch for bundle in bundles.gathering()]
        if placement is not None:
            epochs.append(placement.epoch)
        return min(epochs, default=0)

    def in_flight(self) -> int:
        """Dispatches, own and handed in, that wait for answers. May be called from another thread."""
        own: set[Receipt] = set()
        bundles: set[Bundle] = set(self._bundles.gathering()) if self._bundles is not None else set()
        for waiter in list(self._pending.values()):
            if isinstance(waiter, Part):
                own.add(waiter.receipt)
            elif isinstance(waiter, Post):
                bundles.add(waiter.bundle)
        return len(own) + sum(len(bundle.batches) for bundle in bundles)

    # -- how long to wait ----------------------------------------------------------------------------------------

    def _watch(self, receipt: Receipt, loop: asyncio.AbstractEventLoop) -> None:
        """Look at a dispatch that was just posted when it becomes late."""
        asked = receipt.asked
        receipt.patience_s = patience_s = self._slowness.hedge_after_s(receipt.decision.mode, receipt.shape[0])
        if receipt.handed_to:
            patience_s *= _HAND_IN_PATIENCE  # whoever posts the bundle looks first
        elif not receipt.parts:
            patience_s = self._timeout_s  # they are in a bundle of this instance
        # Since the dispatch was called, which is near enough; only the clock tells when it was sent again.
        now_s = asked.deadline_s - self._timeout_s if asked.attempts == 1 else loop.time()
        receipt.due_s = due_s = min(now_s + patience_s, asked.deadline_s)
        receipt.timer = loop.call_later(due_s - now_s, self._overdue, receipt)

    def _overdue(self, receipt: Receipt) -> None:
        """It waits for longer than usual: let it be sent again if that helps, or wait on until its deadline."""
        loop = asyncio.get_running_loop()
        now_s, last_s = loop.time(), receipt.asked.deadline_s
        if now_s >= last_s:
            self._expire(receipt)
            return
        if not receipt.looks or (now_s - receipt.due_s > GRACE_S and receipt.looks < LOOKS):
            # A loop that was busy runs its timers first: what has come meanwhile is taken in now.
            receipt.looks += 1
            receipt.due_s = min(now_s + GRACE_S, last_s)
        else:
            receipt.looks = 0
            receipt.rounds += 1
            if self._sends_again(receipt):
                self._abandon(receipt.request_ids)
                late = receipt.late()
                receipt.fail(AnswerLate(f"{', '.join(late)}: late for MoE layer {receipt.layer}", instances=late))
                return
            receipt.due_s = min(now_s + receipt.patience_s, last_s)
        receipt.timer = loop.call_later(receipt.due_s - now_s, self._overdue, receipt)

    def _sends_again(self, receipt: Receipt) -> bool:
        if receipt.asked.attempts >= ATTEMPTS:
            return False
        mode: Mode = "direct" if receipt.per_instance else receipt.decision.mode
        waited_s, to = (time.perf_counter_ns() - receipt.posted_ns) * 1e-9, receipt.handed_to
        heard, rounds = receipt.heard(), receipt.rounds
        if not self._gives_up(mode, receipt.late(), heard=heard, rounds=rounds, waited_s=waited_s, to=to):
            return False
        if to:
            self._passed_over[to] = PASSED_OVER_FOR
        return True

    def _gives_up(
        self, mode: Mode, late: tuple[str, ...], *, heard: bool, rounds: int, waited_s: float, to: str = ""
    ) -> bool:
        """Return whether a dispatch should not wait for ``late`` any longer. Suspects them, if each was asked itself.

        ``to``: it was handed to this member.
        """
        if not heard and rounds < 2 and not to:
            return False  # perhaps all are slow, or this instance is
        if mode != "two-phase" and not to and not self.can_mask(frozenset(late)):
            return False
        if not self._slowness.may_hedge() and waited_s < self._timeout_s / 2:
            return False
        if to:
            return True
        if mode == "two-phase":
            self._avoid()
            return True
        return self._suspect(late, "no answer in the usual time")

    def _avoid(self) -> None:
        """Ask each instance itself for some time."""
        self._avoiding = _AVOIDED_FOR

    def _expire(self, receipt: Receipt) -> None:
        late = receipt.late()
        self._abandon(receipt.request_ids)
        if receipt.per_instance:
            self._suspect(late, "no answer before the deadline")  # for the next dispatch
        receipt.fail(
            InstanceLost(
                f"{', '.join(late)}: no answer for MoE layer {receipt.layer} within {self._timeout_s:g} s",
                instances=late,
            )
        )

    def _learn(self, receipt: Receipt) -> None:
        """Take in when those asked have answered."""
        posted_ns, arrivals = receipt.posted_ns, receipt.arrivals
        assert arrivals is not None
        timings = [(name, (at_ns - posted_ns) * 1e-9) for name, at_ns in arrivals]
        if timings:
            self._slowness.answered(receipt.decision.mode, receipt.shape[0], timings)
            if self._slowness.biases is not self._biases:
                self._weigh()

    # -- whether to send again -----------------------------------------------------------------------------------

    async def _may_send_again(self, receipt: Receipt, error: DispatchError) -> bool:
        """Return whether to send a dispatch that has failed once more. Leaves out whoever is to blame."""
        asked, now_s = receipt.asked, asyncio.get_running_loop().time()
        if self._closed or asked.attempts >= ATTEMPTS or now_s >= asked.deadline_s:
            return False
        self._look()
        helps = await self._blame(receipt, error)
        if self._closed or not helps or self._usable is None:
            return False
        self._times.resent(_why(error))
        log.warning("layer_sent_again", layer=receipt.layer, attempt=asked.attempts + 1, problem=str(error))
        return True

    async def _blame(self, receipt: Receipt, error: DispatchError) -> bool:
        """Return whether another attempt may do better."""
        if isinstance(error, DispatchRefused) and error.code == "bad_frame":
            return False  # it would be the same frame
        there = [name for name in error.instances if self._linked(name)]
        if not receipt.per_instance:
            if receipt.handed_to not in error.instances and not self._slowness.suspects.issuperset(there):
                self._avoid()  # it may be a relay or a link between others: each instance is asked itself
            return True
        if not there:
            return True  # it is left out already
        if isinstance(error, DispatchRefused):
            return self._suspect(there, str(error))
        if not isinstance(error, ReplicaMissing):
            return True  # who is lost or late is left out already
        if self._placement is not None and self._placement.epoch != receipt.asked.epoch:
            return True
        if self._suspect(there, str(error)):
            self._stale.update(there)
            return True
        return await self._newer(receipt)

    async def _newer(self, receipt: Receipt) -> bool:
        """Wait shortly for an epoch that the instances do have; returns whether it came."""

        def came() -> bool:
            return self._placement is not None and self._placement.epoch != receipt.asked.epoch

        left_s = receipt.asked.deadline_s - asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_NEWER_WAIT_S, left_s)):
                while not came() and not self._closed:
                    self._changed.clear()
                    await self._changed.wait()
        return came()

    # -- what is on its way --------------------------------------------------------------------------------------

    def _forget(self, receipt: Receipt) -> None:
        self._forget_answers(receipt.request_ids)
        if receipt.timer is not None:
            receipt.timer.cancel()

    def _forget_answers(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._pending.pop(request_id, None)

    def _abandon(self, request_ids: Sequence[int]) -> None:
        """Wait for these no more, but notice when they are answered."""
        abandoned = self._abandoned
        for request_id in request_ids:
            waiter = self._pending.pop(request_id, None)
            if waiter is not None:
                abandoned[request_id] = waiter.via
        while len(abandoned) > _ABANDONED_KEPT:
            del abandoned[next(iter(abandoned))]

    def _came_late(self, request_id: int) -> None:
        """An answer that nobody waits for: whoever sends it lives."""
        name = self._abandoned.pop(request_id, None)
        if name is None:
            return
        self._times.late_answers += 1
        if self._slowness.alive(name, now_s=time.monotonic()):
            log.info("instances_tried_again", instances=[name])
            self.mask(self._slowness.suspects)

    def _passes_over(self, member: str) -> bool:
        left = self._passed_over.pop(member, 0)
        if left > 1:
            self._passed_over[member] = left - 1
        return left > 0


def _why(error: DispatchError) -> Resent:
    if isinstance(error, ReplicaMissing):
        return "replica_missing"
    if isinstance(error, AnswerLate):
        return "late"
    return "refused" if isinstance(error, DispatchRefused) else "lost"

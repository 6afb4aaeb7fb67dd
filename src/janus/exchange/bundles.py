"""Bundles: the rows of several attention instances of a node, sent on as those of one.

One member of the node posts for all (the leader of a layer); the others hand in their rows with what the scheduler
chose, over the node's shared memory, and get their sums back the same way. To the experts a bundle looks like the
dispatch of one instance with more rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog
import torch

from janus.core.exchange_routes import Destination, Mode
from janus.core.linger import Linger
from janus.core.slowness import Slowness, is_timed
from janus.errors import InstanceLost, LinkError
from janus.exchange.bundle import Batch, Bundle, Key, Post
from janus.exchange.bundle_frames import answers_for, fill
from janus.exchange.fine_timer import FineTimer
from janus.exchange.hand_ins import read_hand_in
from janus.exchange.packing import Answer, Numbering, Packing, group_ends
from janus.exchange.plan import Plan
from janus.exchange.receipts import AnswerLate
from janus.transport.contract import InFrame
from janus.transport.frame import Flags, Kind
from janus.transport.link import Link

log = structlog.get_logger(__name__)

#: In Python 3.11, ``Kind.DISPATCH`` is a Python call.
_DISPATCH, _COMBINE = Kind.DISPATCH, Kind.COMBINE
#: Bounds of a wait for other members, seconds. Within them it is what the last bundle took from post to answer.
_SHORTEST_S = 100e-6
_LONGEST_S = 50e-3
#: What is late is looked at once more after this long: a loop that was busy takes in first what has come meanwhile.
GRACE_S = 5e-3
#: A loop that is late even then is looked at again, so many times: longer, and nobody would ever be late for it.
LOOKS = 4

#: The share of the deadline after which whoever posts says who is late; the members would only know the poster.
_PATIENCE = 0.9


class GivesUp(Protocol):
    """Judges whether a bundle waits for too long."""

    def __call__(self, mode: Mode, late: tuple[str, ...], *, heard: bool, rounds: int, waited_s: float) -> bool:
        """Return whether its rows should rather be sent again.

        ``heard``: whether anybody has answered. ``rounds``: how often it was late. ``waited_s``: since its post.
        """


class Bundles:
    """The bundles that this instance posts: opened with the first rows, posted when all who are expected are in."""

    def __init__(
        self,
        *,
        own: str,
        packing: Packing,
        dtype: torch.dtype,
        dtype_code: int,
        links: Mapping[str, Link],
        await_answer: Callable[[Post], int],
        forget_answers: Callable[[Sequence[int]], None],
        abandon_answers: Callable[[Sequence[int]], None],
        slowness: Slowness,
        gives_up: GivesUp,
    ) -> None:
        """Args:
        own: this instance.
        packing: writes rows and adds sums up.
        dtype: of activations.
        dtype_code: its code in headers.
        links: to expert instances, by name.
        await_answer: gives a frame the request id under which its answer will come.
        forget_answers: these request ids are waited for no more.
        abandon_answers: likewise, and those who still answer them are alive.
        slowness: knows how long bundles take.
        gives_up: judges those that take longer.
        """
        self._own = own
        self._packing = packing
        self._dtype = dtype
        self.dtype_code = dtype_code
        self._links = links
        self._await_answer = await_answer
        self.forget_answers = forget_answers
        self._abandon_answers = abandon_answers
        self._slowness = slowness
        self._gives_up = gives_up
        self._open: dict[Key, Bundle] = {}
        self._linger = Linger()
        self._round_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer = FineTimer(self._due)
        self.sent = 0
        self.frames = 0
        self.bytes_out = 0
        self.lingered_s = 0.0

    def close(self) -> None:
        """Drop what is open and give the timer back."""
        for bundle in list(self._open.values()):
            bundle.fail(InstanceLost("the exchange is closing"))
        self._open.clear()
        self._timer.close()

    def gathering(self) -> list[Bundle]:
        """Return the bundles that are not posted yet. May be called from another thread."""
        return list(self._open.values())

    def forget(self, link: Link) -> None:
        """A link is gone: what was handed in over it goes out of open bundles, and is not waited for there."""
        self._linger.forget(link.peer.instance)
        for key, bundle in list(self._open.items()):
            for batch in [b for b in bundle.batches if b.link is link]:
                bundle.batches.remove(batch)
                bundle.rows -= batch.total
                batch.release()
            if self._open.get(key) is not bundle:
                continue  # to post one may take down a link, too, and send the rest
            if not bundle.batches:
                del self._open[key]
            else:
                self._maybe_send(bundle)

    # -- gathering -----------------------------------------------------------------------------------------------

    def add(self, key: Key, batch: Batch, *, deadline_ms: int) -> None:
        """Put a member's rows into the bundle of ``key``."""
        bundle = self._open.get(key)
        if bundle is not None and batch.receipt is not None and any(b.receipt for b in bundle.batches):
            self._send(bundle)  # another micro-batch of ours
            bundle = None
        if bundle is None:
            now = time.monotonic()
            limit_s = min(max(self._round_s, _SHORTEST_S), _LONGEST_S)
            bundle = self._open[key] = Bundle(self, key, deadline_ms, now, now + limit_s)
        bundle.batches.append(batch)
        bundle.rows += batch.total
        self._maybe_send(bundle)

    def hand_in(self, mode: Mode, plan: Plan, link: Link, frame: InFrame, *, deadline_ms: int) -> None:
        """Put what a member hands in into the bundle that it belongs to.

        ``deadline_ms``: this instance's own. Rows that share a frame share its deadline: no member sets that of others.

        Raises:
            ValueError: the frame is no dispatch for this model.
            InstanceLost: it has rows for an instance that is not used here.
        """
        key, batch = read_hand_in(mode, plan, link, frame, own=self._own, packing=self._packing, dtype=self._dtype)
        self.add(key, batch, deadline_ms=deadline_ms)

    def _present(self, bundle: Bundle) -> list[str]:
        return [self._own if batch.link is None else batch.link.peer.instance for batch in bundle.batches]

    def _maybe_send(self, bundle: Bundle) -> None:
        if self._linger.expected(self._present(bundle), layer=bundle.key[1]):
            self._set_timer()
            return
        self._send(bundle)
        if not self._open:
            self._timer.set(None)  # else it wakes the loop for nothing, in the middle of the exchange

    def _set_timer(self) -> None:
        self._timer.set(min((bundle.due_s for bundle in self._open.values()), default=None))

    def _due(self) -> None:
        now = time.monotonic()
        for bundle in list(self._open.values()):
            if bundle.due_s <= now:
                self._send(bundle)
        self._set_timer()

    # -- posting -------------------------------------------------------------------------------------------------

    def _send(self, bundle: Bundle) -> None:
        del self._open[bundle.key]
        bundle.sent_s = now = time.monotonic()
        self.lingered_s += now - bundle.opened_s
        self._linger.sent(self._present(bundle), layer=bundle.key[1])
        self.sent += 1
        if is_timed(self.sent):
            bundle.timings = []
        plan = bundle.plan
        try:
            for index, (to, numbering) in enumerate(zip(plan.destinations, plan.numberings, strict=True)):
                self._post(bundle, index, to, numbering)
        except LinkError as error:
            bundle.fail(InstanceLost(f"cannot dispatch to {error}", instances=(error.peer,)))
            return
        for batch in bundle.batches:
            batch.release()
        bundle.last_s = now + _PATIENCE * bundle.deadline_ms / 1000
        bundle.patience_s = patience_s = self._slowness.hedge_after_s(bundle.key[0], bundle.rows)
        bundle.look_s = min(now + patience_s, bundle.last_s)
        bundle.timer = self._loop.call_later(bundle.look_s - now, self._overdue, bundle)

    def _look_again(self, bundle: Bundle, look_s: float) -> None:
        now = time.monotonic()
        bundle.look_s = min(look_s, bundle.last_s)
        bundle.timer = self._loop.call_later(max(0.0, bundle.look_s - now), self._overdue, bundle)

    def _post(self, bundle: Bundle, index: int, to: Destination, numbering: Numbering) -> None:
        """Post the rows that go to one destination, if there are any."""
        total = 0
        for batch in bundle.batches:
            routed = batch.routed
            count = batch.total if routed is None else self._packing.count(routed.assignment, numbering)
            batch.counts.append(count)
            total += count
        if not total:
            for batch in bundle.batches:
                batch.rows.append(None)
            bundle.posts.append(None)
            bundle.answers.append(None)
            return
        _, layer, plan, _, flags, hidden = bundle.key
        relay = to.relay(layer)
        link = self._links.get(relay)
        if link is None:
            raise LinkError(relay, "is not linked")
        frame, nbytes, top_k = fill(bundle, link, numbering, total, packing=self._packing, dtype=self._dtype)
        post = Post(bundle, index, relay, total)
        request_id = self._await_answer(post)
        bundle.request_ids.append(request_id)
        bundle.posts.append(post)
        bundle.answers.append(None)
        bundle.outstanding += 1
        link.post(
            frame,
            kind=_DISPATCH,
            request_id=request_id,
            epoch=plan.placement.epoch,
            layer=layer,
            dtype=self.dtype_code,
            top_k=top_k,
            rows=total,
            cols=hidden,
            deadline_ms=bundle.deadline_ms,
            flags=flags | Flags.NODE if to.is_node else flags,
        )
        self.frames += 1
        self.bytes_out += nbytes

    def _overdue(self, bundle: Bundle) -> None:
        """It waits for longer than usual: let the rows be sent again if that helps, or wait on until the last."""
        now = time.monotonic()
        waited_s = now - bundle.sent_s
        late = tuple(
            post.via for post, answer in zip(bundle.posts, bundle.answers, strict=True) if post and answer is None
        )
        problem = f"{', '.join(late)}: no answer for MoE layer {bundle.key[1]} within "
        if now >= bundle.last_s:
            bundle.fail(InstanceLost(problem + f"{bundle.last_s - bundle.sent_s:g} s", instances=late))
        elif not bundle.looks or (now - bundle.look_s > GRACE_S and bundle.looks < LOOKS):
            bundle.looks += 1
            self._look_again(bundle, now + GRACE_S)
        else:
            bundle.looks = 0
            bundle.rounds += 1
            heard, rounds = any(frame is not None for frame in bundle.answers), bundle.rounds
            if self._gives_up(bundle.key[0], late, heard=heard, rounds=rounds, waited_s=waited_s):
                self._abandon_answers(bundle.request_ids)
                bundle.fail(AnswerLate(problem + f"{waited_s:.3f} s", instances=late))
            else:
                self._look_again(bundle, now + bundle.patience_s)

    # -- answers -------------------------------------------------------------------------------------------------

    def answered(self, bundle: Bundle) -> None:
        """All answers are in: give each member its sums."""
        self._round_s = time.monotonic() - bundle.sent_s
        if bundle.timings:
            self._slowness.answered(bundle.key[0], bundle.rows, bundle.timings)
        # The others first: this instance's own step goes on in a later turn of the loop.
        offsets = [0] * len(bundle.answers)
        own: tuple[Batch, list[Answer], list[int]] | None = None
        for batch in bundle.batches:
            answers, groups = answers_for(batch, bundle, offsets, itemsize=self._dtype.itemsize)
            if batch.receipt is not None:
                own = (batch, answers, groups)
            elif batch.link is not None and not batch.link.closed:
                self._hand_back(batch, batch.link, bundle, answers, groups)
        if own is not None:
            batch, answers, groups = own
            receipt = batch.receipt
            assert receipt is not None
            receipt.take_sums(answers, group_ends(groups), bundle.answers)
            bundle.answers = []
        bundle.end()

    def _hand_back(self, batch: Batch, link: Link, bundle: Bundle, answers: list[Answer], groups: list[int]) -> None:
        rows, hidden = batch.total, bundle.key[5]
        slowest_us = max((frame.header.elapsed_us for frame in bundle.answers if frame is not None), default=0)
        try:
            frame = link.allocate(rows * hidden * self._dtype.itemsize)
            self._packing.reduce(answers, group_ends(groups), frame, rows, hidden)
            link.post(
                frame,
                kind=_COMBINE,
                request_id=batch.request_id,
                epoch=bundle.plan.placement.epoch,
                layer=bundle.key[1],
                dtype=self.dtype_code,
                rows=rows,
                cols=hidden,
                elapsed_us=slowest_us,
            )
        except LinkError as error:
            log.info("combine_dropped", peer=link.peer.instance, problem=error.problem)

"""Bundles: the rows of several attention instances of a node, sent on as those of one.

One member of the node posts for all (the leader of a layer); the others hand in their rows with what the scheduler
chose, over the node's shared memory, and get their sums back the same way. To the experts a bundle looks like the
dispatch of one instance with more rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import structlog
import torch

from janus.core.exchange_routes import Destination, Mode
from janus.core.linger import Linger
from janus.core.placement import Placement
from janus.core.scheduling import Assignment
from janus.core.slowness import Slowness, is_timed
from janus.errors import DispatchError, InstanceLost, LinkError, ReplicaMissing
from janus.exchange.fine_timer import FineTimer
from janus.exchange.layout import UngatedLayout, check_dispatch, check_ungated, dispatch_layout
from janus.exchange.packing import Answer, Numbering, Packing, Routed, Rows, group_ends
from janus.exchange.receipts import AnswerLate, DispatchRefused, Receipt, mismatch
from janus.messages.control import DispatchRejected
from janus.transport.contract import InFrame, OutFrame
from janus.transport.frame import Flags, Kind
from janus.transport.link import Link

log = structlog.get_logger(__name__)

#: Bounds of a wait for other members, seconds. Within them it is what the last bundle took from post to answer.
_SHORTEST_S = 100e-6
_LONGEST_S = 50e-3
#: What is late is looked at once more after this long: a loop that was busy takes in first what has come meanwhile.
GRACE_S = 5e-3
#: A loop that is late even then is looked at again, so many times: longer, and nobody would ever be late for it.
LOOKS = 4

#: The share of the deadline after which whoever posts says who is late; the members would only know the poster.
_PATIENCE = 0.9

#: A hand-in says which replicas its rows go to, and the leader needs no more.
_NOBODY = np.zeros(0, dtype=np.int32)


@dataclass(slots=True, eq=False)
class Plan:
    """How dispatches of one placement go one way."""

    placement: Placement
    destinations: tuple[Destination, ...]
    #: Of each destination, and of all instances together.
    numberings: tuple[Numbering, ...]
    everywhere: Numbering
    #: Of the instances that no destination has, as they are not used; ``None`` when all are.
    unserved: Numbering | None = None
    #: The instances that are not used, as ``UngatedLayout.left_out`` has them.
    left_out: int = 0


#: What rows must agree in to share a bundle: way, layer, plan, K, flags, H.
_Key: TypeAlias = tuple[Mode, int, Plan, int, int, int]


class GivesUp(Protocol):
    """Judges whether a bundle waits for too long."""

    def __call__(self, mode: Mode, late: tuple[str, ...], *, heard: bool, rounds: int, waited_s: float) -> bool:
        """Return whether its rows should rather be sent again.

        ``heard``: whether anybody has answered. ``rounds``: how often it was late. ``waited_s``: since its post.
        """


@dataclass(slots=True, eq=False)
class Batch:
    """One member's rows in a bundle."""

    #: [T, H]; in a hand-in's memory for another member's.
    x_TH: torch.Tensor
    #: ``None``: the experts gate.
    routed: Routed | None
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

    key: _Key
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
    bundles: Bundles = None  # type: ignore[assignment]  # set by whoever opens it
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
        bundles = self.bundles
        hidden = self.batches[0].x_TH.shape[1]
        problem = mismatch(frame, post.via, post.rows, hidden, bundles.dtype_code)
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
            bundles.answered(self)

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
        self.bundles.forget_answers(self.request_ids)
        for frame in self.answers:
            if frame is not None:
                frame.release()
        self.answers.clear()


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
        self._open: dict[_Key, Bundle] = {}
        self._linger = Linger()
        self._round_s = 0.0
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
                bundle.rows -= batch.x_TH.shape[0]
                batch.release()
            if self._open.get(key) is not bundle:
                continue  # to post one may take down a link, too, and send the rest
            if not bundle.batches:
                del self._open[key]
            else:
                self._maybe_send(bundle)

    # -- gathering -----------------------------------------------------------------------------------------------

    def add(self, key: _Key, batch: Batch, *, deadline_ms: int) -> None:
        """Put a member's rows into the bundle of ``key``."""
        bundle = self._open.get(key)
        if bundle is not None and batch.receipt is not None and any(b.receipt for b in bundle.batches):
            self._send(bundle)  # another micro-batch of ours
            bundle = None
        if bundle is None:
            now = time.monotonic()
            limit_s = min(max(self._round_s, _SHORTEST_S), _LONGEST_S)
            bundle = self._open[key] = Bundle(key, deadline_ms, now, now + limit_s)
            bundle.bundles = self
        bundle.batches.append(batch)
        bundle.rows += batch.x_TH.shape[0]
        self._maybe_send(bundle)

    def hand_in(self, mode: Mode, plan: Plan, link: Link, frame: InFrame, *, deadline_ms: int) -> None:
        """Put what a member hands in into the bundle that it belongs to.

        ``deadline_ms``: this instance's own. Rows that share a frame share its deadline: no member sets that of others.

        Raises:
            ValueError: the frame is no dispatch for this model.
            InstanceLost: it has rows for an instance that is not used here.
        """
        header = frame.header
        layers, flags = plan.placement.num_layers, header.flags & ~Flags.HAND_IN
        if flags & (Flags.NODE | Flags.FORWARDED):
            raise ValueError("the hand-in says that it is for experts")  # whoever posts it says for which
        routed = None
        if flags & Flags.EGATE:
            ungated = check_ungated(header, frame.payload, hidden=header.cols, dtype=self._dtype, num_layers=layers)
            x_TH, _ = ungated.views(frame.payload)
            top_k = 0
        else:
            layout = check_dispatch(header, hidden=header.cols, dtype=self._dtype, num_layers=layers)
            x_TH, phys_TK, weights_TK = layout.views(frame.payload)
            assignment = Assignment(phys_TK, _NOBODY, _NOBODY, 0, phys_address=frame.address + layout.slots_at)
            if not self._packing.count(assignment, plan.everywhere):
                raise ValueError("the hand-in names no replica")
            if plan.unserved is not None and self._packing.count(assignment, plan.unserved):
                raise self._unserved(phys_TK, plan)
            routed = Routed(x_TH, assignment, torch.from_numpy(weights_TK))
            top_k = header.top_k
        batch = Batch(x_TH, routed, link=link, request_id=header.request_id, frame=frame)
        key = (mode, header.layer, plan, top_k, flags, header.cols)
        self.add(key, batch, deadline_ms=deadline_ms)

    def _unserved(self, phys_TK: npt.NDArray[np.int32], plan: Plan) -> InstanceLost:
        placement, unserved = plan.placement, plan.unserved
        assert unserved is not None
        real = phys_TK[phys_TK >= 0]
        found = np.unique(real[unserved.local[real] >= 0] // placement.slots_per_instance)
        names = tuple(placement.instances[index] for index in found.tolist())
        return InstanceLost(f"{self._own} does not use {', '.join(names)}", instances=names)

    def _present(self, bundle: Bundle) -> list[str]:
        return [self._own if batch.link is None else batch.link.peer.instance for batch in bundle.batches]

    def _maybe_send(self, bundle: Bundle) -> None:
        if self._linger.expected(self._present(bundle), layer=bundle.key[1]):
            self._set_timer()
        else:
            self._send(bundle)

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
        bundle.timer = asyncio.get_running_loop().call_later(bundle.look_s - now, self._overdue, bundle)

    def _look_again(self, bundle: Bundle, look_s: float) -> None:
        now = time.monotonic()
        bundle.look_s = min(look_s, bundle.last_s)
        bundle.timer = asyncio.get_running_loop().call_later(max(0.0, bundle.look_s - now), self._overdue, bundle)

    def _post(self, bundle: Bundle, index: int, to: Destination, numbering: Numbering) -> None:
        """Post the rows that go to one destination, if there are any."""
        total = 0
        for batch in bundle.batches:
            routed = batch.routed
            count = len(batch.x_TH) if routed is None else self._packing.count(routed.assignment, numbering)
            batch.counts.append(count)
            total += count
        if not total:
            for batch in bundle.batches:
                batch.rows.append(None)
            bundle.posts.append(None)
            bundle.answers.append(None)
            return
        link = self._links.get(to.relay)
        if link is None:
            raise LinkError(to.relay, "is not linked")
        _, layer, plan, top_k, flags, _ = bundle.key
        frame, nbytes, top_k = self._fill(bundle, link, numbering, total, top_k)
        post = Post(bundle, index, to.relay, total)
        request_id = self._await_answer(post)
        bundle.request_ids.append(request_id)
        bundle.posts.append(post)
        bundle.answers.append(None)
        bundle.outstanding += 1
        link.post(
            frame,
            kind=Kind.DISPATCH,
            request_id=request_id,
            epoch=plan.placement.epoch,
            layer=layer,
            dtype=self.dtype_code,
            top_k=top_k,
            rows=total,
            cols=bundle.batches[0].x_TH.shape[1],
            deadline_ms=bundle.deadline_ms,
            flags=flags | Flags.NODE if to.is_node else flags,
        )
        self.frames += 1
        self.bytes_out += nbytes

    def _fill(
        self, bundle: Bundle, link: Link, numbering: Numbering, total: int, top_k: int
    ) -> tuple[OutFrame, int, int]:
        """Return a frame with everybody's rows for a destination, its size, and its K."""
        hidden, at = bundle.batches[0].x_TH.shape[1], 0
        if bundle.key[4] & Flags.EGATE:
            ungated = UngatedLayout(total, hidden, len(bundle.batches), self._dtype)
            frame = link.allocate(ungated.nbytes)
            x, counts = ungated.views(frame.payload)
            for index, batch in enumerate(bundle.batches):
                rows = len(batch.x_TH)
                x[at : at + rows].copy_(batch.x_TH)
                counts[index] = rows
                batch.rows.append(None)
                at += rows
            ungated.left_out(frame.payload)[0] = bundle.plan.left_out
            return frame, ungated.nbytes, len(bundle.batches)
        layout = dispatch_layout(total, hidden, top_k, self._dtype)
        frame = link.allocate(layout.nbytes)
        for batch in bundle.batches:
            count = batch.counts[-1]
            rows_index: Rows = None
            if count:
                assert batch.routed is not None
                rows_index = self._packing.pack(frame, layout, batch.routed, to=numbering, count=count, at=at)
            batch.rows.append(rows_index)
            at += count
        return frame, layout.nbytes, top_k

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
            answers, groups = self._answers_for(batch, bundle, offsets)
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

    def _answers_for(self, batch: Batch, bundle: Bundle, offsets: list[int]) -> tuple[list[Answer], list[int]]:
        """Return a member's rows of each answer, and the node of each; moves ``offsets`` past them."""
        row_nbytes = batch.x_TH.shape[1] * self._dtype.itemsize
        answers, groups = [], []
        for index, frame in enumerate(bundle.answers):
            count = batch.counts[index]
            if frame is None or not count:
                continue
            start = offsets[index] * row_nbytes
            offsets[index] += count
            answers.append(Answer(frame.payload[start:], frame.address + start, count, batch.rows[index]))
            groups.append(bundle.plan.destinations[index].group)
        return answers, groups

    def _hand_back(self, batch: Batch, link: Link, bundle: Bundle, answers: list[Answer], groups: list[int]) -> None:
        rows, hidden = batch.x_TH.shape
        slowest_us = max((frame.header.elapsed_us for frame in bundle.answers if frame is not None), default=0)
        try:
            frame = link.allocate(rows * hidden * self._dtype.itemsize)
            self._packing.reduce(answers, group_ends(groups), frame, rows, hidden)
            link.post(
                frame,
                kind=Kind.COMBINE,
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

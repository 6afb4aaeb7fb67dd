"""The relay of a node: shares a dispatch with the node's expert instances, adds their partial sums up, answers once."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from janus.errors import DispatchError, InstanceLost, LinkError, ReplicaMissing
from janus.exchange.packing import Answer, Packing
from janus.exchange.receipts import reject
from janus.messages.control import DispatchRejected
from janus.transport.frame import Flags, Kind
from janus.transport.link import InFrame, Link, OutFrame

log = structlog.get_logger(__name__)

#: In Python 3.11, ``Kind.DISPATCH`` is a Python call.
_DISPATCH, _COMBINE = Kind.DISPATCH, Kind.COMBINE

#: The share of a dispatch's deadline after which the relay says who is late; the sender would only know the relay.
_PATIENCE = 0.8


@dataclass(slots=True, eq=False)
class RelayJob:
    """One dispatch that several instances of this node compute."""

    origin: Link
    frame: InFrame
    #: Who computes a share, in the order in which the shares are added up.
    names: tuple[str, ...]
    answers: list[Answer | None]
    frames: list[InFrame]
    outstanding: int
    request_ids: list[int]
    row_nbytes: int
    out: OutFrame | None = None
    elapsed_us: int = 0
    begun: bool = False
    over: bool = False
    #: How long shares are waited for, seconds, and until when, on the loop's clock.
    patience_s: float = math.inf
    due_s: float = math.inf


class Relay:
    """Also takes the answers of the siblings in. All on the step loop."""

    def __init__(
        self, *, own: str, siblings: dict[str, Link], packing: Packing, dtype_code: int, itemsize: int
    ) -> None:
        """``siblings``: links to the other expert instances of this node that are up, by name."""
        self.siblings = siblings
        self._own = own
        self._packing = packing
        self._code = dtype_code
        self._itemsize = itemsize
        self._ids = itertools.count(1)
        #: request id -> (job, position in it)
        self._pending: dict[int, tuple[RelayJob, int]] = {}
        #: Set while nothing is relayed.
        self.idle = asyncio.Event()
        self.idle.set()
        #: What is relayed now, in order of arrival. One timer looks after all of it: a job is over in a fraction of its
        #: deadline, so the timer is hardly ever set, where one for each would be set and taken back every time.
        self._jobs: dict[RelayJob, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.relayed = 0
        self.forwarded = 0

    def begin(self, link: Link, frame: InFrame, names: Sequence[str]) -> RelayJob:
        """Forward a dispatch to those of ``names`` that are not this instance, and await their answers.

        Raises:
            InstanceLost: one of them is not linked; nothing is left behind.
        """
        header = frame.header
        missing = tuple(n for n in names if n != self._own and (n not in self.siblings or self.siblings[n].closed))
        if missing:
            raise InstanceLost(f"not linked to {', '.join(missing)} of its node", instances=missing)
        count = len(names)
        job = RelayJob(link, frame, tuple(names), [None] * count, [], count, [], header.cols * self._itemsize)
        for position, name in enumerate(names):
            if name == self._own:
                continue
            request_id = next(self._ids)
            self._pending[request_id] = (job, position)
            job.request_ids.append(request_id)
            try:
                self.siblings[name].forward(
                    frame,
                    kind=_DISPATCH,
                    request_id=request_id,
                    epoch=header.epoch,
                    layer=header.layer,
                    dtype=header.dtype,
                    top_k=header.top_k,
                    rows=header.rows,
                    cols=header.cols,
                    deadline_ms=header.deadline_ms,
                    flags=(header.flags & ~int(Flags.NODE)) | int(Flags.FORWARDED),
                )
            except LinkError as error:
                self._forget(job)
                raise InstanceLost(f"cannot forward to {error}", instances=(name,)) from error
            self.forwarded += 1
        self.relayed += 1
        job.begun = True
        self._jobs[job] = None
        self.idle.clear()
        if header.deadline_ms:
            loop = self._loop = self._loop or asyncio.get_running_loop()
            job.patience_s = _PATIENCE * header.deadline_ms / 1000
            job.due_s = loop.time() + job.patience_s
            if self._timer is None or job.due_s < self._timer.when():
                self._set_timer(loop, job.due_s)
        return job

    def own_share(self, job: RelayJob, out: OutFrame, elapsed_us: int) -> None:
        """Take this instance's own partial sums, [rows, H] in ``out``, which is the frame that will go back."""
        if job.over:
            return
        job.out = out
        position = job.names.index(self._own)
        self._arrived(job, position, Answer(out.payload, out.address, job.frame.header.rows, None), elapsed_us)

    def answered(self, frame: InFrame) -> None:
        """Take a sibling's partial sums; those that nobody waits for are dropped."""
        header = frame.header
        found = self._pending.pop(header.request_id, None)
        if found is None:
            frame.release()
            return
        job, position = found
        asked = job.frame.header
        if (header.rows, header.cols, header.dtype) != (asked.rows, asked.cols, self._code):
            frame.release()
            name = job.names[position]
            self.fail(job, InstanceLost(f"{name}: its share is {header.rows}x{header.cols}", instances=(name,)))
            return
        job.frames.append(frame)
        self._arrived(job, position, Answer(frame.payload, frame.address, header.rows, None), header.elapsed_us)

    def rejected(self, request_id: int, message: DispatchRejected) -> None:
        """A sibling cannot compute its share."""
        found = self._pending.pop(request_id, None)
        if found is not None:
            job, position = found
            name = job.names[position]
            kind = ReplicaMissing if message.code == "replica_missing" else InstanceLost
            self.fail(job, kind(f"{name}: {message.problem}", instances=(name,)))

    def lost(self, name: str, problem: str) -> None:
        """A sibling is gone: what waits for it fails now."""
        error = InstanceLost(f"{name}: {problem}", instances=(name,))
        for job in {id(j): j for j, position in self._pending.values() if j.names[position] == name}.values():
            self.fail(job, error)

    def fail(self, job: RelayJob, error: DispatchError) -> None:
        """Tell whoever sent the dispatch that there will be no answer."""
        if job.over:
            return
        log.warning("relay_failed", peer=job.origin.peer.instance, layer=job.frame.header.layer, problem=str(error))
        self._forget(job)
        if not job.origin.closed:
            reject(job.origin, job.frame.header.request_id, error)

    def drop(self, job: RelayJob) -> None:
        """Nobody waits for the answer any more: give back what has come of it."""
        if not job.over:
            self._forget(job)

    def close(self) -> None:
        """Watch over nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- within --------------------------------------------------------------------------------------------------

    def _arrived(self, job: RelayJob, position: int, answer: Answer, elapsed_us: int) -> None:
        job.answers[position] = answer
        job.elapsed_us = max(job.elapsed_us, elapsed_us)
        job.outstanding -= 1
        if job.outstanding == 0:
            self._reply(job)

    def _reply(self, job: RelayJob) -> None:
        header, origin = job.frame.header, job.origin
        answers = [answer for answer in job.answers if answer is not None]
        try:
            out = job.out or origin.allocate(header.rows * job.row_nbytes)
            # Row by row, so that the own share may lie where the sum goes.
            self._packing.reduce(answers, (len(answers),), out, header.rows, header.cols)
            origin.post(
                out,
                kind=_COMBINE,
                request_id=header.request_id,
                epoch=header.epoch,
                layer=header.layer,
                dtype=self._code,
                rows=header.rows,
                cols=header.cols,
                elapsed_us=job.elapsed_us,
            )
        except LinkError as error:
            log.info("combine_dropped", peer=origin.peer.instance, problem=error.problem)
        finally:
            self._forget(job)

    def _forget(self, job: RelayJob) -> None:
        if job.begun and not job.over:
            del self._jobs[job]
            if not self._jobs:
                self.idle.set()
        job.over = True
        for request_id in job.request_ids:
            self._pending.pop(request_id, None)
        job.answers.clear()
        for frame in job.frames:
            frame.release()
        job.frames.clear()

    def _set_timer(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(due_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up what is late, and look again when the next one would be."""
        self._timer, now_s = None, loop.time()
        for job in [job for job in self._jobs if job.due_s <= now_s]:
            self._late(job)
        next_s = min((job.due_s for job in self._jobs), default=math.inf)
        if next_s < math.inf:
            self._set_timer(loop, next_s)

    def _late(self, job: RelayJob) -> None:
        late = tuple(name for name, answer in zip(job.names, job.answers, strict=True) if answer is None)
        problem = f"{', '.join(late)}: no share of MoE layer {job.frame.header.layer} within {job.patience_s:g} s"
        self.fail(job, InstanceLost(problem, instances=late))

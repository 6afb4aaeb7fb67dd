"""The attention instances behind the gateway: submits sequences, takes tokens, and moves what a lost instance leaves.

Lives on the control loop alone; every method returns at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import structlog

from janus.core.admission import Admission
from janus.core.sequence import MAX_ATTEMPTS, Sequence, TokenGap
from janus.errors import LinkError, RequestError, Unavailable
from janus.messages import Message
from janus.messages.control import ClusterView, Submit, TokenDelta, Tokens
from janus.transport.link import InFrame, Link
from janus_gateway.generation import PoolGeneration, Track
from janus_gateway.instances import AttentionInstances
from janus_gateway.metrics import GatewayMetrics

log = structlog.get_logger()

#: Refusals of an instance that another instance would not give.
_ELSEWHERE = frozenset({"draining", "starting"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Sequences that have begun to answer, those that have not, and the tokens that came since the start."""

    running: int
    waiting: int
    tokens: int


class AttentionPool:
    """``Backend`` of the HTTP half and link handler of the links to the attention instances."""

    def __init__(self, *, admission: Admission, metrics: GatewayMetrics, recovery_timeout_s: float) -> None:
        self._admission = admission
        self._instances = AttentionInstances(admission)
        self._metrics = metrics
        self._recovery_timeout_s = recovery_timeout_s
        self._tracks: dict[str, Track] = {}
        self._orphans: dict[Track, asyncio.TimerHandle] = {}
        self._kv_usage: dict[str, float] = {}
        self._tokens = 0
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.refresh = self._refresh_metrics

    def use_links(self, links: Mapping[str, Link]) -> None:
        """See ``AttentionInstances.use_links``; for the start, once."""
        self._instances.use_links(links)

    # -- Backend -------------------------------------------------------------------------------------------------

    def start(self, requests: Seq[Submit], *, arrived_at: float) -> PoolGeneration:
        """Start all of ``requests``, or none; see ``Backend.start``."""
        self.check()
        generation = PoolGeneration(self)
        tracks: list[Track] = []
        try:
            for index, request in enumerate(requests):
                sequence = Sequence(request_id=request.request_id, prompt_ids=request.prompt_ids, params=request.params)
                track = Track(sequence=sequence, generation=generation, index=index, arrived_at=arrived_at)
                tracks.append(track)
                self._instances.admit(track)
                self._tracks[sequence.wire_id] = track
        except RequestError:
            for track in tracks:
                self._instances.cancel(track)
                self._forget(track)
            raise
        for track in tracks:
            self._metrics.prompt_tokens.inc(len(track.sequence.prompt_ids))
            self._metrics.prompt_size.observe(len(track.sequence.prompt_ids))
            self._metrics.traffic.arrived(len(track.sequence.prompt_ids))
        generation.live.update(tracks)
        self._idle.clear()
        return generation

    def check(self) -> None:
        """Raise Unavailable when nothing can be served now."""
        problems = self.problems()
        if problems:
            raise Unavailable(f"cannot serve now: {'; '.join(problems)}", retry_after_s=1.0)

    def problems(self) -> list[str]:
        """Why requests cannot be served now; empty when they can."""
        return self._instances.problems()

    @property
    def in_flight(self) -> int:
        """Sequences that are started and not finished."""
        return len(self._tracks) + len(self._orphans)

    async def wait_idle(self) -> None:
        """Return when no sequence is in flight."""
        await self._idle.wait()

    def abort(self, error: RequestError) -> None:
        """End every sequence with ``error``."""
        for track in [*self._tracks.values(), *self._orphans]:
            self._fail(track, error)

    async def close(self) -> None:
        """Send no more messages; the links are closed by whoever opened them."""
        await self._instances.close()

    # -- the cluster ---------------------------------------------------------------------------------------------

    def on_view(self, view: ClusterView) -> None:
        """Follow the cluster; what was waiting for an instance may have one now."""
        self._instances.on_view(view)
        self._kv_usage = {name: usage for name, usage in self._kv_usage.items() if name in self._instances.ready}
        self.retry_orphans()

    def retry_orphans(self) -> None:
        """Give every sequence without an instance to one that is there by now. Also called when a link comes up."""
        for track in list(self._orphans):
            self._resubmit(track, avoid=())

    # -- LinkHandler ---------------------------------------------------------------------------------------------

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """Take the tokens of one step in."""
        if not isinstance(message, Tokens):
            log.warning("unexpected_message", peer=link.peer.instance, message=type(message).__name__)
            return
        now = asyncio.get_running_loop().time()
        self._kv_usage[link.peer.instance] = message.kv_usage
        for delta in message.deltas:
            track = self._tracks.get(delta.request_id)
            if track is not None:  # else: finished or cancelled here, the tokens were on their way
                self._take(track, delta, now)

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """Attention instances send a gateway no tensors."""
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        """Move what ran behind this link."""
        self._instances.drop(link)
        name = link.peer.instance
        lost = [track for track in self._tracks.values() if track.link is link]
        if lost:
            log.warning("attention_instance_lost", peer=name, sequences=len(lost), problem=error.problem)
        for track in lost:
            self._detach(track)
            self._orphan(track, avoid=(name,))

    # -- tokens --------------------------------------------------------------------------------------------------

    def _take(self, track: Track, delta: TokenDelta, now: float) -> None:
        sequence = track.sequence
        try:
            token_ids, logprobs = sequence.accept(delta)
        except TokenGap as error:
            log.error("tokens_lost", request_id=sequence.wire_id, problem=str(error))
            self._instances.cancel(track)
            self._detach(track)
            self._orphan(track, avoid=())
            return
        if token_ids:
            self._measure(track, len(token_ids), now)
            self._admission.progress(sequence.request_id, len(token_ids))
        match delta.finish_reason:
            case None:
                track.generation.add(track.index, token_ids, logprobs)
            case "stop" | "length" as reason:
                track.generation.add(track.index, token_ids, logprobs, reason, delta.stop_token_id)
                self._metrics.generation_tokens.inc(delta.stop_token_id is not None)
                self._end(track, reason)
            case _ if delta.code in _ELSEWHERE and track.link is not None:
                self._detach(track)
                self._orphan(track, avoid=(track.instance,))
            case _:
                self._fail(track, _error_of(delta))

    def _measure(self, track: Track, tokens: int, now: float) -> None:
        metrics = self._metrics
        metrics.generation_tokens.inc(tokens)
        self._tokens += tokens
        if track.last_token_at is None or track.stretch is None:
            metrics.ttft.observe(now - track.arrived_at)
            track.stretch = metrics.traffic.first(tokens, now - track.arrived_at, now)
        else:
            gap_s = now - track.last_token_at
            metrics.itl.observe(gap_s / tokens)
            metrics.traffic.more(track.stretch, tokens, gap_s, now)
        track.last_token_at = now

    # -- ends ----------------------------------------------------------------------------------------------------

    def finish(self, track: Track) -> None:
        """The answer is complete before the instance knows: stop it there."""
        self._instances.cancel(track)
        self._end(track, "stop")

    def cancel(self, track: Track) -> None:
        """Nobody wants the answer any more."""
        self._instances.cancel(track)
        self._end(track, "abort")

    def _fail(self, track: Track, error: RequestError) -> None:
        """One sequence that cannot be finished ends its whole generation."""
        self._instances.cancel(track)
        self._end(track, "error")
        track.generation.fail(error)

    def _end(self, track: Track, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        self._forget(track)
        track.generation.live.discard(track)
        self._metrics.finished(reason)
        self._metrics.e2e.observe(now - track.arrived_at)
        self._metrics.output_size.observe(len(track.sequence.emitted_ids))
        if track.sequence.emitted_ids:
            self._metrics.traffic.ended(track.stretch, len(track.sequence.emitted_ids), track.last_token_at)

    def _forget(self, track: Track) -> None:
        self._detach(track)
        timer = self._orphans.pop(track, None)
        if timer is not None:
            timer.cancel()
        self._admission.release(track.sequence.request_id, now=asyncio.get_running_loop().time())
        if not self._tracks and not self._orphans:
            self._idle.set()

    # -- recovery ------------------------------------------------------------------------------------------------

    def _orphan(self, track: Track, avoid: Collection[str]) -> None:
        """``track`` has lost its instance: resume it elsewhere, now or within the recovery timeout."""
        if track.sequence.complete:
            track.generation.add(track.index, [], [], "length")
            self._end(track, "length")
            return
        problem = Unavailable(
            f"attention instance {track.instance} was lost, and no other one took the request over within "
            f"{self._recovery_timeout_s:g} s",
            code="instance_lost",
            retry_after_s=1.0,
        )
        if track.sequence.attempt >= MAX_ATTEMPTS:
            self._fail(track, problem)
            return
        loop = asyncio.get_running_loop()
        self._orphans[track] = loop.call_later(self._recovery_timeout_s, self._fail, track, problem)
        self._resubmit(track, avoid)

    def _resubmit(self, track: Track, avoid: Collection[str]) -> None:
        sequence, lost = track.sequence, track.instance
        sequence.attempt += 1
        try:
            self._instances.move(track, avoid=avoid)
        except RequestError as error:
            sequence.attempt -= 1
            log.info("request_waits", request_id=sequence.request_id, problem=error.message)
            return
        self._tracks[sequence.wire_id] = track
        self._orphans.pop(track).cancel()
        self._metrics.resubmitted.inc()
        log.info(
            "request_resumed",
            request_id=sequence.request_id,
            lost=lost,
            instance=track.instance,
            tokens=len(sequence.emitted_ids),
        )

    def _detach(self, track: Track) -> None:
        if self._tracks.get(track.sequence.wire_id) is track:
            del self._tracks[track.sequence.wire_id]
        track.link = None

    def stats(self) -> PoolStats:
        """A snapshot for heartbeats and metrics."""
        running = sum(bool(track.sequence.emitted_ids) for track in self._tracks.values())
        return PoolStats(running=running, waiting=self.in_flight - running, tokens=self._tokens)

    def _refresh_metrics(self) -> None:
        metrics, stats = self._metrics, self.stats()
        metrics.running.set(stats.running)
        metrics.waiting.set(stats.waiting)
        metrics.recovering.set(len(self._orphans))
        metrics.outstanding.set(self._admission.stats().tokens)
        metrics.kv_usage.set(max(self._kv_usage.values(), default=0.0))
        metrics.instances.set(len(self._instances.linked))


def _error_of(delta: TokenDelta) -> RequestError:
    problem = delta.problem or f"the attention instance ended the request ({delta.finish_reason})"
    error = RequestError(problem, code=delta.code or "engine_error", retry_after_s=delta.retry_after_s)
    error.status = delta.status or 500
    return error

"""The simulated gateway: admission and sequences are those that serve; links and clients are modelled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from janus.core.admission import Admission
from janus.core.batcher import Action, Emit, Reject
from janus.core.sequence import MAX_ATTEMPTS
from janus.core.sequence import Sequence as TokenSequence
from janus.errors import RequestError, Unavailable
from janus.messages.control import ClusterView, SamplingParams, TokenDelta
from janus.simulation.agenda import Agenda, Event
from janus.simulation.attention import AttentionInstance
from janus.simulation.config import ClusterConfig
from janus.simulation.records import Outcome, Records

#: Refusals of an instance that another one would not give.
_ELSEWHERE = frozenset({"draining", "starting"})


@dataclass(slots=True, kw_only=True, eq=False)
class Track:
    """One request from arrival to end."""

    sequence: TokenSequence
    arrived_s: float
    first_s: float = -1.0
    last_s: float = -1.0
    #: The instance that has it; ``None`` while none has. And the one that has it, or had it last.
    on: AttentionInstance | None = None
    instance: str = ""
    resumed: int = 0


class Gateway:
    """Lets requests in, spreads them, takes their tokens, and resumes them elsewhere when their instance is lost."""

    def __init__(
        self, config: ClusterConfig, *, agenda: Agenda, records: Records, live: Mapping[str, AttentionInstance]
    ) -> None:
        """``live``: the attention instances that are linked, by name; read here, kept by its owner."""
        self.admission = Admission(config.admission)
        self._config = config
        self._agenda = agenda
        self._records = records
        self._live = live
        #: In the order of the view: what is drawn from a set would differ from process to process.
        self._ready: tuple[str, ...] = ()
        self._tracks: dict[str, Track] = {}
        self._orphans: dict[Track, Event] = {}
        self._prompts: dict[int, list[int]] = {}
        self.ended: Callable[[], None] = lambda: None

    @property
    def in_flight(self) -> int:
        """Requests that are in and have not ended."""
        return len(self._tracks) + len(self._orphans)

    def on_view(self, view: ClusterView) -> None:
        """Follow the cluster; what was waiting for an instance may have one now."""
        self.admission.update(view)
        self._ready = tuple(m.instance for m in view.members if m.role == "attention" and m.state == "ready")
        for track in list(self._orphans):
            self._resubmit(track, avoid=())

    # -- requests ------------------------------------------------------------------------------------------------

    def arrive(self, number: int, *, prompt: int, output: int, sent_s: float) -> None:
        """A request for ``output`` tokens after a prompt of ``prompt`` is read; its client sent it at ``sent_s``."""
        now = self._agenda.now
        self._bring_choice_up_to_date()
        request_id = f"r{number}"
        self._records.arrived(prompt)
        try:
            name = self.admission.admit(request_id, prompt_tokens=prompt, max_tokens=output, now=now)
        except RequestError as error:
            self._records.ended(Outcome.of(error), arrived_s=sent_s, now=now)
            return
        prompt_ids = self._prompts.setdefault(prompt, [0] * prompt)
        params = SamplingParams(max_tokens=output, ignore_eos=True)
        sequence = TokenSequence(request_id=request_id, prompt_ids=prompt_ids, params=params)
        track = Track(sequence=sequence, arrived_s=sent_s, instance=name)
        instance = self._live.get(name)
        if instance is None:
            self._orphan(track, avoid=(name,))
        else:
            self._post(track, instance)

    def _bring_choice_up_to_date(self) -> None:
        """Deliver what has come out on the instances that may be chosen: runs deliver at their end otherwise.

        The one with the fewest outstanding tokens is chosen. What was not delivered only makes the others look busier,
        so it is enough that those which have the fewest in truth are up to date.
        """
        if len(self._ready) < 2:
            return
        outstanding = self.admission.outstanding
        live = [self._live[name] for name in self._ready if name in self._live]
        least = [outstanding(each.name) - each.most_unseen_tokens() for each in live]
        fewest, chosen = float("inf"), list[AttentionInstance]()
        for index in sorted(range(len(live)), key=least.__getitem__):
            if least[index] > fewest:
                break
            each = live[index]
            tokens = outstanding(each.name) - each.unseen_tokens()
            if tokens < fewest:
                fewest, chosen = tokens, []
            if tokens == fewest:
                chosen.append(each)
        for each in chosen:
            each.settle()

    def _post(self, track: Track, instance: AttentionInstance) -> None:
        wire_id = track.sequence.wire_id
        track.on, track.instance = instance, instance.name
        self._tracks[wire_id] = track
        self.take(instance, instance.submit(track.sequence.submit()), self._agenda.now)

    # -- tokens --------------------------------------------------------------------------------------------------

    def take(self, instance: AttentionInstance, actions: Sequence[Action], at_s: float) -> None:
        """Take in what ``instance`` said at ``at_s``."""
        for action in actions:
            if isinstance(action, Emit):
                track = self._tracks.get(action.delta.request_id)
                if track is not None:
                    self._take(track, action.delta, at_s)
            elif isinstance(action, Reject):
                track = self._tracks.get(action.request_id)
                if track is not None:
                    self._refused(track, action.error)

    def _take(self, track: Track, delta: TokenDelta, at_s: float) -> None:
        sequence = track.sequence
        token_ids, _ = sequence.accept(delta)
        if token_ids:
            if token_ids[0] != delta.index or token_ids[-1] != len(sequence.emitted_ids) - 1:
                raise AssertionError(f"{sequence.wire_id}: tokens are out of order: {delta}")
            self._records.tokens(len(token_ids), since_s=track.last_s, at_s=at_s)
            if track.first_s < 0:
                track.first_s = at_s
            track.last_s = at_s
            self.admission.progress(sequence.request_id, len(token_ids))
        match delta.finish_reason:
            case None:
                pass
            case "stop" | "length":
                if len(sequence.emitted_ids) != sequence.params.max_tokens:
                    raise AssertionError(f"{sequence.wire_id}: {len(sequence.emitted_ids)} tokens, others were wanted")
                self._end(track, Outcome("finished"))
            case _ if delta.code in _ELSEWHERE:
                self._detach(track)
                self._orphan(track, avoid=(track.instance,))
            case _:
                self._end(track, Outcome(delta.code or "error"))

    def _refused(self, track: Track, error: RequestError) -> None:
        if error.code in _ELSEWHERE:
            self._detach(track)
            self._orphan(track, avoid=(track.instance,))
        else:
            self._end(track, Outcome.of(error))

    def _end(self, track: Track, outcome: Outcome) -> None:
        self._detach(track)
        timer = self._orphans.pop(track, None)
        if timer is not None:
            timer.cancel()
        now = self._agenda.now
        self.admission.release(track.sequence.request_id, now=now)
        self._records.ended(
            outcome,
            arrived_s=track.arrived_s,
            first_s=track.first_s,
            last_s=track.last_s,
            tokens=len(track.sequence.emitted_ids),
            now=now,
        )
        self.ended()

    # -- recovery, as ``janus_gateway.attention_pool`` does it -----------------------------------------------------

    def lost(self, name: str) -> None:
        """An instance is gone: resume what ran there."""
        lost = [track for track in self._tracks.values() if track.instance == name]
        for track in lost:
            self._detach(track)
            self._orphan(track, avoid=(name,))

    def _orphan(self, track: Track, avoid: Collection[str]) -> None:
        if track.sequence.complete:
            self._end(track, Outcome("finished"))
            return
        if track.sequence.attempt >= MAX_ATTEMPTS:
            self._end(track, Outcome("instance_lost"))
            return
        limit = self._config.recovery_timeout_s
        self._orphans[track] = self._agenda.after(limit, lambda: self._end(track, Outcome("instance_lost")))
        self._resubmit(track, avoid)

    def _resubmit(self, track: Track, avoid: Collection[str]) -> None:
        sequence = track.sequence
        without = {*avoid, *(name for name in self._ready if name not in self._live)}
        sequence.attempt += 1
        try:
            name = self.admission.move(sequence.request_id, avoid=without, resumed_tokens=sequence.known_tokens)
        except Unavailable:
            sequence.attempt -= 1
            return
        self._orphans.pop(track).cancel()
        track.resumed += 1
        self._records.resumed += 1
        self._post(track, self._live[name])

    def _detach(self, track: Track) -> None:
        if self._tracks.get(track.sequence.wire_id) is track:
            del self._tracks[track.sequence.wire_id]
        track.on = None

    # -- invariants ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ``AssertionError`` unless every request that came has ended once, or is in flight."""
        known = self.admission.stats()
        if known.requests != self.in_flight:
            raise AssertionError(f"{known.requests} requests are admitted, {self.in_flight} are in flight")
        if self._records.arrivals != self._records.ends + self.in_flight:
            raise AssertionError(
                f"{self._records.arrivals} arrived, {self._records.ends} ended, {self.in_flight} are in flight"
            )
        for track in (*self._tracks.values(), *self._orphans):
            emitted = track.sequence.emitted_ids
            if emitted != list(range(len(emitted))):
                raise AssertionError(f"{track.sequence.request_id}: a token was lost, repeated or changed")

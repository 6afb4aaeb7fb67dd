"""Lets the numbers of instances follow the load: observations in, decisions logged and kept, and carried out."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from janus.cluster.scalers import Scaler, ScalingFailed, ScalingTimedOut
from janus.config.scaling import ScalingOptions
from janus.core.membership import Membership
from janus.core.membership_events import Event, ExpectedSet
from janus.core.scaling import Autoscaler, Counts, Decision, Observation, ScalingConfig
from janus.core.scaling.observing import Observer
from janus.core.scaling.steps import steps
from janus.core.scaling.target import Model
from janus.errors import JanusError
from janus.messages.control import ClusterView, Heartbeat, ScalingStatus, StatusReport, Traffic
from janus_placement_controller.scaling_metrics import ScalingMetrics

log = structlog.get_logger()

_KEPT_DECISIONS, _KEPT_OBSERVATIONS = 256, 32
#: Seconds between two looks at whether instances that were asked for serve.
_POLL_S = 0.5
_OBSERVATIONS_PER_INTERVAL = 12
_LEAST_EVERY_S, _MOST_EVERY_S = 0.5, 5.0
#: Gateways report once per second.
_LEAST_WINDOW_S = 5.0


def scaling_config(options: ScalingOptions, *, monolithic: bool) -> ScalingConfig:
    """Return what the autoscaler is held to. In a monolithic cluster there are no expert instances to count."""
    low, high = (0, 0) if monolithic else (options.min_experts, options.max_experts)
    return ScalingConfig(
        slo_tpot_s=options.slo_tpot_s,
        percentile=options.slo_percentile,
        slo_ttft_s=options.slo_ttft_s,
        low=Counts(attention=options.min_attention, experts=low),
        high=Counts(attention=options.max_attention, experts=high),
        interval_s=options.scale_interval_s,
        urgent_s=min(5.0, options.scale_interval_s / 4),
        settle_s=min(5.0, options.scale_interval_s / 2),
        look_back_s=options.scale_look_back_s,
        headroom=options.scale_headroom,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A decision as ``GET /scaling`` shows it."""

    at: str
    decision: Decision
    #: What it was decided on.
    seen: Observation
    #: Whether it is carried out: not in a dry run.
    acts: bool


class Scaling:
    """Belongs to the controller's loop. ``run`` looks and decides; an operation is a task of its own beside it."""

    def __init__(
        self,
        options: ScalingOptions,
        config: ScalingConfig,
        membership: Membership,
        *,
        apply: Callable[[Event], None],
        scaler: Scaler | None,
        model: Model,
        metrics: ScalingMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``apply``: takes events for the membership. ``scaler``: ``None`` in a dry run."""
        self._options = options
        self._membership = membership
        self._apply = apply
        self._scaler = scaler
        self._metrics = metrics
        self._clock = clock
        self.config = config
        self._autoscaler = Autoscaler(config, model=model)
        self._observer = Observer(max(_LEAST_WINDOW_S, config.interval_s), percentile=config.percentile)
        self._every_s = min(max(_LEAST_EVERY_S, config.interval_s / _OBSERVATIONS_PER_INTERVAL), _MOST_EVERY_S)
        #: Who is there in which state, and the epoch in force: what clients see is of one of these.
        self._shape: object = None
        #: Replicas that every expert keeps; 0 = not known yet.
        self._replicas = options.min_replicas
        self._operation: asyncio.Task[None] | None = None
        self._doing = self._problem = ""
        self.decisions: deque[Kept] = deque(maxlen=_KEPT_DECISIONS)
        self.observations: deque[tuple[float, Observation]] = deque(maxlen=_KEPT_OBSERVATIONS)

    # -- reports -------------------------------------------------------------------------------------------------

    def on_traffic(self, name: str, incarnation: str, traffic: Traffic) -> None:
        """A gateway says what clients ask for and see."""
        self._observer.traffic(name, incarnation, traffic, self._clock())

    def on_heartbeat(self, name: str, incarnation: str, beat: Heartbeat) -> None:
        """An instance says how it is."""
        self._observer.beat(name, incarnation, beat, self._clock())

    # -- the loop ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look every few seconds until cancelled; an operation under way is then broken off."""
        try:
            while True:
                await asyncio.sleep(self._every_s)
                try:
                    self.look()
                except Exception as error:
                    # The cluster serves on with the numbers that it has; whoever watches must know.
                    log.exception("scaling_crashed")
                    self._problem = f"{type(error).__name__}: {error}"
        finally:
            if self._operation is not None:
                self._operation.cancel()
                await asyncio.gather(self._operation, return_exceptions=True)

    def look(self) -> Decision:
        """Observe once, and decide; what is decided begins to be carried out."""
        now = self._clock()
        seen = self._observe(now)
        self.observations.append((now, seen))
        decision = self._autoscaler.observe(seen, now)
        self._metrics.observed(seen)
        if decision.due:
            self._decided(decision, seen)
        return decision

    def _decided(self, decision: Decision, seen: Observation) -> None:
        acts = decision.changes and self._scaler is not None
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.decisions.append(Kept(at=at, decision=decision, seen=seen, acts=acts))
        self._metrics.decided(decision)
        predicted = decision.predicted
        log.info(
            "scaling_decided",
            reason=decision.reason.value,
            why=decision.why,
            present=str(decision.present),
            wanted=str(decision.wanted),
            acts=acts,
            tpot_ms=_ms(seen.tpot_tail_s),
            predicted_ms=_ms(predicted.tpot_tail_s if predicted else None),
            arrivals_s=round(seen.arrivals_s, 3),
            running=round(seen.running, 1),
            queued=round(seen.queued, 1),
            model=decision.model,
            correction=decision.correction,
        )
        if acts and self._operation is None:
            self._doing = f"scaling {decision.present} -> {decision.wanted}"
            self._operation = asyncio.create_task(self._carry_out(decision), name="scaling-operation")

    async def _carry_out(self, decision: Decision) -> None:
        before = decision.present
        try:
            for wanted in steps(decision.present, decision.wanted):
                await self._step(before, wanted)
                before = wanted
            self._problem = ""
            log.info("scaled", counts=str(before))
        except JanusError as error:
            self._problem = str(error)
            self._metrics.failed()
            log.error("scaling_failed", present=str(before), wanted=str(decision.wanted), problem=str(error))
            self._autoscaler.failed(str(error), self._clock())
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"
            self._metrics.failed()
            log.exception("scaling_crashed")
            self._autoscaler.failed(self._problem, self._clock())
        finally:
            self._operation, self._doing = None, ""

    async def _step(self, before: Counts, wanted: Counts) -> None:
        """One instance more or less."""
        scaler, timeout_s = self._scaler, self._options.scale_timeout_s
        assert scaler is not None
        if scaler.awaits:
            await scaler.scale(wanted, timeout_s=timeout_s)
            return
        # Those who leave are not missed if the controller knows first, and those who come may come at any time.
        self._expect(wanted)
        try:
            await scaler.scale(wanted, timeout_s=timeout_s)
            await self._until_there(wanted, timeout_s)
        except ScalingFailed as error:
            self._expect(before)
            # What it has begun is taken back: else instances would come, or go, that nobody counts on.
            try:
                await scaler.scale(before, timeout_s=timeout_s)
            except JanusError as again:
                raise ScalingFailed(f"{error}; and back to {before}: {again}") from error
            raise

    def _expect(self, counts: Counts) -> None:
        gateways = self._membership.expected["gateway"]
        self._apply(
            ExpectedSet(gateways=gateways, attention=counts.attention, experts=counts.experts, now=self._clock())
        )

    async def _until_there(self, wanted: Counts, timeout_s: float) -> None:
        deadline = self._clock() + timeout_s
        while (there := self._there(self._membership.view)) != wanted or self._unsettled():
            if self._clock() > deadline:
                why = "; ".join(self._unsettled()) or f"there are {there}"
                raise ScalingTimedOut(f"{wanted} are wanted, and after {timeout_s:g} s {why}")
            await asyncio.sleep(_POLL_S)

    # -- what is seen --------------------------------------------------------------------------------------------

    def _observe(self, now: float) -> Observation:
        view = self._membership.view
        problems = [self._doing] if self._doing else []
        problems += self._unsettled()
        shape = (
            [(member.instance, member.incarnation, member.state) for member in view.members],
            view.placement.epoch if view.placement is not None else 0,
        )
        if shape != self._shape or problems:
            self._observer.changed(now)
        self._shape = shape
        self._observer.keep(member.instance for member in view.members)
        there, expected = self._there(view), self._membership.expected
        present = there.at_least(Counts(attention=expected["attention"], experts=expected["expert"]))
        ready: dict[str, list[str]] = {"gateway": [], "attention": []}
        for member in view.members:
            if member.state == "ready" and member.role in ready:
                ready[member.role].append(member.instance)
        return self._observer.observe(
            now,
            present=present,
            gateways=ready["gateway"],
            attention=ready["attention"],
            least_experts=self._least_experts(view, present),
            starting=sum(member.state == "joining" for member in view.members),
            draining=sum(member.state == "draining" for member in view.members),
            problems=problems,
        )

    @staticmethod
    def _there(view: ClusterView) -> Counts:
        here = [member.role for member in view.members if member.state in ("joining", "ready")]
        return Counts(attention=here.count("attention"), experts=here.count("expert"))

    def _unsettled(self) -> list[str]:
        """Why the cluster is not whole, or is changing. One that is slow is there: more may be just what it needs."""
        view = self._membership.view
        there = {member.instance for member in view.members if member.state != "failed"}
        placed = view.placement.instances if view.placement is not None else []
        return [
            *self._membership.waiting_for,
            *(f"{m.instance} is {m.state}" for m in view.members if m.state in ("joining", "draining")),
            *(f"{name} is gone, and others serve its experts" for name in placed if name not in there),
        ]

    def _least_experts(self, view: ClusterView, present: Counts) -> int:
        """Fewest expert instances that hold as many replicas of every expert as there have to be."""
        placement = view.placement
        if placement is None or not placement.slots or not present.experts:
            return 0
        width = len(placement.slots[0][0])  # no instance can use more slots than these
        slots = [min(member.slots or width, width) for member in view.members if member.role == "expert"]
        per_instance = min(slots, default=width)
        if not self._replicas:
            replicas = self._membership.report(self._clock()).replicas
            least = min((count for layer in replicas for count in layer), default=1)
            self._replicas = min(2, max(1, least))
        return min(present.experts, -(-self._replicas * placement.num_experts // per_instance))

    # -- what is shown -------------------------------------------------------------------------------------------

    def status(self) -> ScalingStatus:
        """For ``janus status``."""
        mode = self._options.autoscale
        if not self.decisions:
            return ScalingStatus(mode=mode, operation=self._doing, problem=self._problem)
        decision = self.decisions[-1].decision
        return ScalingStatus(
            mode=mode,
            present=str(decision.present),
            wanted=str(decision.wanted),
            reason=decision.reason.value,
            why=decision.why,
            age_s=self._clock() - decision.at,
            operation=self._doing,
            problem=self._problem,
        )

    def report(self) -> dict[str, Any]:
        """For ``GET /scaling``; the newest decision and observation last."""
        now = self._clock()
        found: dict[str, Any] = msgspec.to_builtins(
            {
                "status": self.status(),
                "backend": self._scaler.name if self._scaler is not None else "",
                "config": self.config,
                "observations": [{"age_s": now - at, **msgspec.to_builtins(seen)} for at, seen in self.observations],
                "decisions": [
                    {"time": kept.at, "age_s": now - kept.decision.at, "acts": kept.acts, "seen": kept.seen}
                    | msgspec.to_builtins(kept.decision)
                    for kept in self.decisions
                ],
            }
        )
        return found

    def refresh(self, report: StatusReport) -> None:
        """Bring the gauges up to date."""
        self._metrics.refresh(self._there(report.view), doing=bool(self._doing))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None or seconds == float("inf") else round(1000 * seconds, 2)

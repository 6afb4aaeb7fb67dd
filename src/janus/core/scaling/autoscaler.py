"""When the numbers of instances change, and to what.

Out fast: at an interval, and at once when an SLO is missed, streams wait or the load will be too much, to the fewest
instances that bear the load with headroom. In slowly: an eighth per interval, when fewer would have borne the peak of
the whole look-back with a margin. Nothing is concluded from a cluster that is not whole.
"""

from __future__ import annotations

from janus.core.scaling import wording
from janus.core.scaling.contract import Counts, Decision, Observation, Prediction, Reason, ScalingConfig
from janus.core.scaling.demand import Demand, DemandHistory
from janus.core.scaling.learned import LearnedModel
from janus.core.scaling.target import Model, Outlook, as_good_as, bears, fewest
from janus.core.scaling.trials import Trials
from janus.core.scaling.urgency import Need, find_need

#: One decision adds at most so many times the instances of a role; the next one may add as many again.
_MOST_GROWTH = 2
#: One decision takes away one instance, or so large a part of all: of a large cluster, one at a time would take hours.
_SHRINKS_BY = 8
#: More are added when less than this share of the headroom is left, and then for all of it: noise makes no difference.
_LEAST_HEADROOM = 0.5


class Autoscaler:
    """Decides; whoever asks carries it out, one instance at a time, and says when that failed. Seconds of any clock."""

    def __init__(self, config: ScalingConfig, *, model: Model | None = None) -> None:
        """``model``: what to expect of other numbers; without one, it is learned from what is observed."""
        self.config = config
        self.model = model or LearnedModel(config)
        self._history = DemandHistory(config.look_back_s)
        self._trials = Trials(config.look_back_s)
        self._present: Counts | None = None
        #: What was decided last, where that was a change.
        self._wanted: Counts | None = None
        self._decided_at: float | None = None
        self._learned_at: float | None = None
        self._grown_at = float("-inf")
        #: Urgent decisions in a row that changed nothing: each makes the next one wait twice as long.
        self._unheeded = 0
        self._failures = 0
        self._retry_at = float("-inf")
        self._problem = ""

    def failed(self, problem: str, now: float) -> None:
        """What was decided could not be carried out: try again later, and later each time."""
        config = self.config
        self._retry_at = now + min(config.backoff_s * 2.0**self._failures, config.backoff_most_s)
        self._failures += 1
        self._problem = problem

    def observe(self, seen: Observation, now: float) -> Decision:
        """Take an observation in, and decide when it is time to; ``now`` never goes back."""
        config = self.config
        if self._decided_at is None:
            self._decided_at = now
        self._follow(seen, now)
        regular = now - self._decided_at >= config.interval_s
        if seen.problems:
            return self._hold(seen, Reason.BLOCKED, "; ".join(seen.problems), now) if regular else _not_due(seen, now)
        demand = self._history.add(seen, now)
        if seen.window_s < config.settle_s:
            return _not_due(seen, now)
        self._learn(seen, demand, now)
        if now < self._retry_at:
            why = f"an operation failed, the next one is tried in {self._retry_at - now:.0f} s: {self._problem}"
            return self._hold(seen, Reason.BACKOFF, why, now) if regular else _not_due(seen, now)
        need = find_need(seen, config, self._outlook(seen, demand, config.slo_tpot_s))
        pause = min(config.interval_s, config.urgent_s * 2**self._unheeded)
        if not regular and (need is None or now - self._decided_at < pause):
            return _not_due(seen, now)
        decision = self._decide(seen, demand, need, now)
        self._decided_at = now
        self._unheeded = self._unheeded + 1 if need is not None else 0
        return decision

    # -- what is known -------------------------------------------------------------------------------------------

    def _follow(self, seen: Observation, now: float) -> None:
        """Note changes, whoever made them."""
        if seen.present == self._wanted and not seen.problems:
            self._failures, self._retry_at = 0, float("-inf")
        before, self._present = self._present, seen.present
        if before is None or before == seen.present:
            return
        self._unheeded = 0
        if not before.covers(seen.present):
            self._grown_at = now

    def _learn(self, seen: Observation, demand: Demand, now: float) -> None:
        dt = seen.window_s if self._learned_at is None else min(seen.window_s, now - self._learned_at)
        self._learned_at = now
        if seen.tpot_samples < self.config.samples:
            return
        self.model.learn(seen, demand, dt)
        if seen.tpot_tail_s is not None:
            self._trials.judge(seen.present, seen.tpot_tail_s, demand.tokens_s, now)

    def _outlook(self, seen: Observation, demand: Demand, slo_s: float) -> Outlook:
        return self.model.outlook(demand, slo_s=slo_s, most=self._most(seen.present), streams_most=seen.streams_most)

    def _most(self, present: Counts) -> Counts:
        """As many as one decision may lead to."""
        most = Counts(attention=_MOST_GROWTH * present.attention, experts=_MOST_GROWTH * present.experts)
        return most.at_most(self.config.high).at_least(present)

    # -- decisions -----------------------------------------------------------------------------------------------

    def _decide(self, seen: Observation, demand: Demand, need: Need | None, now: float) -> Decision:
        config, present = self.config, seen.present
        low = config.low.at_least(Counts(attention=0, experts=seen.least_experts)).at_most(config.high)
        inside = present.at_least(low).at_most(config.high)
        if inside != present:
            why = f"there are to be {low} to {config.high}"
            return self._decision(seen, Reason.BOUNDS, why, now, wanted=inside)
        least = self._outlook(seen, demand.times(1 + _LEAST_HEADROOM * config.headroom), config.slo_tpot_s)
        if need is None and bears(least, present):
            return self._shrink(seen, demand, low, now)
        outlook, most = self._outlook(seen, demand.times(1 + config.headroom), config.slo_tpot_s), self._most(present)
        found = fewest(lambda counts: bears(outlook, counts), present, most)
        wanted = found or as_good_as(outlook, present, most)
        if need is not None:
            wanted = wanted.at_least(need.least.at_most(most))
        if wanted != present:
            return self._grow(seen, demand, now, need=need, outlook=outlook, wanted=wanted)
        why = need.why if need is not None else f"the load asks for more {wording.load(seen)}"
        return self._hold(seen, Reason.LIMIT, f"{why}; there may be at most {config.high}", now, outlook)

    def _grow(
        self, seen: Observation, demand: Demand, now: float, *, need: Need | None, outlook: Outlook, wanted: Counts
    ) -> Decision:
        config, present = self.config, seen.present
        reason = Reason.LOAD if need is None else need.reason
        thin = f"too little of the headroom of {config.headroom:.0%} is left {wording.load(seen)}"
        why = thin if need is None else need.why
        if reason is not Reason.QUEUE and self._trials.given_up(demand.tokens_s, now):
            why = f"{why}; but more instances did not lower it lately: something else limits it"
            return self._hold(seen, Reason.FUTILE, why, now, outlook)
        known = seen.tpot_tail_s if seen.tpot_samples >= config.samples and reason is not Reason.QUEUE else None
        self._trials.grows(present, known, demand.tokens_s, now)
        return self._decision(seen, reason, why, now, outlook, wanted=wanted)

    def _shrink(self, seen: Observation, demand: Demand, low: Counts, now: float) -> Decision:
        config, present = self.config, seen.present
        outlook = self._outlook(seen, demand.times(1 + config.headroom), config.slo_tpot_s)
        slo_s = config.slo_tpot_s * (1 - config.slack)
        peak = self._history.peak.times((1 + config.headroom) * (1 + config.margin))
        strict = self._outlook(seen, peak, slo_s)

        def enough(counts: Counts) -> bool:
            return bears(strict, counts) and not self._trials.too_few(counts, self._history.peak.tokens_s, now)

        target = fewest(enough, low, present)
        fine = f"{present} are enough {wording.load(seen)}"
        if seen.refused:
            fine = f"{fine}; the gateways refused {seen.refused} that instances have room for, see --max-queue"
        if target is None or target == present:
            return self._hold(seen, Reason.STEADY, fine, now, outlook)
        covered = min(self._history.covered_s(now), now - self._grown_at)
        if covered < config.look_back_s:
            why = f"{fine}, and {target} may be: for {covered:.0f} s of {config.look_back_s:.0f} s so far"
            return self._hold(seen, Reason.STEADY, why, now, outlook)
        if seen.tpot_samples >= config.samples and (seen.tpot_tail_s or 0.0) > slo_s:
            why = f"{fine}, with {config.tail} TPOT {wording.seconds(seen.tpot_tail_s or 0.0)} near the SLO"
            return self._hold(seen, Reason.STEADY, why, now, outlook)
        wanted = present
        for _ in range(max(1, present.total // _SHRINKS_BY)):
            wanted = _one_fewer(outlook, wanted, target)
        self._trials.shrinks(wanted)
        why = f"{target} would have been enough for {config.look_back_s:.0f} s, now {wording.load(seen)}"
        return self._decision(seen, Reason.SURPLUS, why, now, outlook, wanted=wanted)

    def _hold(
        self, seen: Observation, reason: Reason, why: str, now: float, outlook: Outlook | None = None
    ) -> Decision:
        self._decided_at = now
        return self._decision(seen, reason, why, now, outlook, wanted=seen.present)

    def _decision(
        self,
        seen: Observation,
        reason: Reason,
        why: str,
        now: float,
        outlook: Outlook | None = None,
        *,
        wanted: Counts,
    ) -> Decision:
        predicted: Prediction | None = None
        at_present: Prediction | None = None
        if outlook is not None and outlook.demand.tokens_s > 0:
            at_present = outlook.predict(seen.present)
            predicted = at_present if wanted == seen.present else outlook.predict(wanted)
        if wanted != seen.present:
            self._wanted = wanted
            why = wording.sentence(why, wording.expected(predicted, self.config))
        return Decision(
            at=now,
            reason=reason,
            why=why,
            present=seen.present,
            wanted=wanted,
            predicted=predicted,
            predicted_present=at_present,
            model=self.model.name,
            correction=round(self.model.correction, 4),
        )


def _one_fewer(outlook: Outlook, counts: Counts, target: Counts) -> Counts:
    """Return ``counts`` with one instance less, of the role that is missed least; never below ``target``."""
    choices = [counts.plus(attention=-1)] * (target.attention < counts.attention)
    choices += [counts.plus(experts=-1)] * (target.experts < counts.experts)
    return min(choices, key=lambda fewer: outlook.predict(fewer).tpot_tail_s, default=counts)


def _not_due(seen: Observation, now: float) -> Decision:
    return Decision(at=now, reason=Reason.NOT_DUE, why="", present=seen.present, wanted=seen.present)

"""What a scaler is shown: the last seconds of the simulated cluster, in the words of ``core.scaling``."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from janus.core.scaling.contract import Counts, Observation
from janus.simulation.agenda import Agenda
from janus.simulation.attention import AttentionInstance
from janus.simulation.config import ClusterConfig
from janus.simulation.control import ControlPlane
from janus.simulation.records import Records, Window
from janus.simulation.timing import StepClock

#: Seconds that an observation looks back on at most: what clients saw, and what arrived.
_SEEN_S, _ARRIVED_S = 30.0, 60.0


class Observer:
    """Looks at the cluster every ``observe_s`` seconds."""

    def __init__(
        self,
        config: ClusterConfig,
        *,
        agenda: Agenda,
        records: Records,
        clock: StepClock,
        control: ControlPlane,
        instances: Mapping[str, AttentionInstance],
        percentile: float,
    ) -> None:
        """``percentile``: of the tails, 0 = means."""
        self._config, self._agenda, self._records, self._clock = config, agenda, records, clock
        self._control, self._instances, self._percentile = control, instances, percentile
        self._windows: deque[Window] = deque(maxlen=max(1, round(_ARRIVED_S / config.observe_s)))
        self._present: Counts | None = None
        self._changed_s = 0.0

    def look(self) -> Observation:
        """Return what happened lately; every call takes the next stretch of time in."""
        config, control, records = self._config, self._control, self._records
        for instance in self._instances.values():
            instance.settle()
        now, present = self._agenda.now, control.present
        if present != self._present:
            self._present, self._changed_s = present, self._windows[-1].until_s if self._windows else 0.0
        records.window.until_s = now
        self._windows.append(records.window)
        records.window = Window(since_s=now, first_request=len(records.tpot_s))
        start = max(self._changed_s, now - _SEEN_S)
        seen = [window for window in self._windows if window.since_s >= start - 1e-9]
        every = list(self._windows)
        first = seen[0].first_request if seen else len(records.tpot_s)
        pauses, finished = sum(w.pauses for w in seen), len(records.tpot_s) - first
        arrivals, lasted = sum(w.arrivals for w in every), now - every[0].since_s
        stats = [instance.stats() for instance in self._instances.values()]
        running, waiting = sum(s.running for s in stats), sum(s.waiting for s in stats)
        step = self._clock.split(decode=max(1, running // max(1, len(stats))), context=self._context(running))
        window_s = now - seen[0].since_s if seen else 0.0
        return Observation(
            window_s=window_s,
            present=control.wanted,
            arrivals_s=arrivals / lasted if lasted > 0 else 0.0,
            prompt_tokens=sum(w.prompt_tokens for w in every) / arrivals if arrivals else 0.0,
            output_tokens=float(np.mean(records.tokens_of[first:])) if finished else 0.0,
            finished=finished,
            refused=sum(w.refused for w in seen),
            output_tokens_s=sum(w.output_tokens for w in seen) / window_s if window_s else 0.0,
            tpot_mean_s=sum(w.pause_s for w in seen) / pauses if pauses else None,
            tpot_tail_s=self._tail(records.tpot_s[first:]) if finished else None,
            tpot_samples=finished,
            ttft_mean_s=float(np.mean(records.ttft_s[first:])) if finished else None,
            ttft_tail_s=self._tail(records.ttft_s[first:]) if finished else None,
            running=running,
            queued=waiting,
            kv_usage=max((s.kv_usage for s in stats), default=0.0),
            streams_most=config.batcher.max_running,
            expert_share=(step.exchange_s + step.experts_s - step.hidden_s) / step.total_s if running else None,
            a_max=step.a_max if running else None,
            starting=control.starting,
            draining=control.draining,
            least_experts=-(-config.model.experts // config.slots),
            problems=control.problems(),
        )

    def _context(self, running: int) -> float:
        tokens = sum(instance.batcher.context_tokens for instance in self._instances.values())
        return tokens / running if running else 1.0

    def _tail(self, seconds: object) -> float:
        values = np.asarray(seconds)
        return float(np.percentile(values, self._percentile) if self._percentile else values.mean())

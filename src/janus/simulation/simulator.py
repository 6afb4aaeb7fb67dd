"""The simulation: a workload, a cluster, what goes wrong, and what comes out.

    report = Simulation(config, workload, slo=Slo(tpot_s=0.1), seed=1).run()

Real code: admission and sequences (gateway), batcher (attention instances), registry and placement epochs (controller),
autoscaler, step times and a_max (planner). Modelled: time, arrivals, links, loading, failures; see docs/simulation.md.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from janus.core.batcher import Action
from janus.core.scaling.contract import Decision
from janus.errors import Unavailable
from janus.messages.control import ClusterView
from janus.simulation.agenda import Agenda
from janus.simulation.attention import AttentionInstance
from janus.simulation.config import ClusterConfig, Fault, Slo
from janus.simulation.control import ControlPlane
from janus.simulation.gateway import Gateway
from janus.simulation.observing import Observer
from janus.simulation.process import Hooks
from janus.simulation.records import Records, SizeChange, Struck
from janus.simulation.report import Report
from janus.simulation.scaler import Scaler
from janus.simulation.timing import StepClock
from janus.simulation.workloads.closed import ClosedLoop
from janus.simulation.workloads.workload import Workload

#: After the last arrival, requests in flight have so many seconds to end.
_LAST_S = 3600.0


def _never() -> bool:
    return False


class Simulation:
    """One run; the same arguments give the same report."""

    def __init__(
        self,
        config: ClusterConfig,
        workload: Workload | ClosedLoop,
        *,
        slo: Slo | None = None,
        seed: int = 0,
        faults: Sequence[Fault] = (),
        scaler: Scaler | None = None,
        tail_percentile: float = 99.0,
    ) -> None:
        """Args:
        seed: of which instance a fault strikes.
        scaler: is shown the cluster every ``config.observe_s`` seconds; ``tail_percentile`` is what its tails are.

        Raises:
            ConfigError: the cluster cannot hold the model.
        """
        self.config, self.workload, self.slo = config, workload, slo or Slo()
        self.agenda = Agenda()
        self.records = Records()
        self.clock = StepClock(config)
        self._random = random.Random(seed)
        #: Attention instances that are linked, by name, those that drain too.
        self.attention: dict[str, AttentionInstance] = {}
        self._experts_ready = True
        self.gateway = Gateway(config, agenda=self.agenda, records=self.records, live=self.attention)
        hooks = Hooks(
            attention_up=self._attention_up,
            attention_down=self._attention_down,
            attention_drains=self._attention_drains,
            is_idle=lambda name: self.attention[name].idle,
            on_view=self._on_view,
            expert_lost=self._expert_lost,
            experts_serving=self._experts_serving,
        )
        self.control = ControlPlane(config, agenda=self.agenda, hooks=hooks)
        self.control.start()
        #: The next request, those that the gateway has not read, and when it has read all of them.
        self._next = self._coming = 0
        self._accepts_s = 0.0
        if isinstance(workload, ClosedLoop):
            self.gateway.ended = self._ask_again
            for _ in range(min(workload.streams, workload.requests)):
                self._ask_again()
        else:
            self._schedule_arrival()
        for fault in faults:
            self.agenda.at(fault.at_s, partial(self._strike, fault))
        self._scaler = scaler
        #: Decisions that changed something.
        self.decisions: list[Decision] = []
        if scaler is not None:
            self._observer = Observer(
                config,
                agenda=self.agenda,
                records=self.records,
                clock=self.clock,
                control=self.control,
                instances=self.attention,
                percentile=tail_percentile,
            )
            self.agenda.after(config.observe_s, self._observe)

    def run(self) -> Report:
        """Let all requests arrive and end, and return what happened."""
        workload = self.workload
        arriving_s = _LAST_S if isinstance(workload, ClosedLoop) else workload.duration_s
        self.agenda.run(arriving_s, done=self._is_over if isinstance(workload, ClosedLoop) else _never)
        self._settle()
        arriving_s, device_s, tokens = self.agenda.now, self.control.device_s(), self.records.output_tokens
        if not self._is_over():
            self.agenda.run(arriving_s + _LAST_S, done=self._is_over)
        self._settle()
        self.check()
        return Report.of(
            self.records,
            workload=workload.name,
            duration_s=arriving_s,
            slo=self.slo,
            config=self.config,
            device_s=device_s,
            tokens_by_then=tokens,
            now=self.agenda.now,
        )

    def _is_over(self) -> bool:
        return not self.gateway.in_flight and not self._coming

    def check(self) -> None:
        """Raise ``AssertionError`` unless every invariant holds: of the gateway and of every batcher."""
        self.gateway.check()
        for instance in self.attention.values():
            instance.batcher.check()

    def _settle(self) -> None:
        for instance in self.attention.values():
            instance.settle()

    # -- arrivals --------------------------------------------------------------------------------------------------

    def _schedule_arrival(self) -> None:
        workload = self.workload
        if isinstance(workload, Workload) and self._next < len(workload):
            self.agenda.at(float(workload.at_s[self._next]), self._arrive)

    def _arrive(self) -> None:
        index, workload = self._next, self.workload
        assert isinstance(workload, Workload)
        self._next += 1
        self._accept(index, int(workload.prompt[index]), int(workload.output[index]))
        self._schedule_arrival()

    def _ask_again(self) -> None:
        """One of the clients that wait for their answers sends its next request."""
        index, workload = self._next, self.workload
        assert isinstance(workload, ClosedLoop)
        if index < workload.requests:
            self._next += 1
            self._accept(index, workload.prompt, workload.output)

    def _accept(self, index: int, prompt: int, output: int) -> None:
        """A client sends a request; the gateway reads one after the other, in events of their own."""
        sent_s = self.agenda.now
        self._coming += 1
        self._accepts_s = max(self._accepts_s, sent_s) + self.config.accepts_s
        if self.clock.host is not None:
            self.clock.host.arrived(sent_s)
            self._retime()

        def arrive() -> None:
            self._coming -= 1
            self.gateway.arrive(index, prompt=prompt, output=output, sent_s=sent_s)

        self.agenda.at(self._accepts_s, arrive)

    # -- the cluster -----------------------------------------------------------------------------------------------

    def _attention_up(self, name: str) -> None:
        instance = AttentionInstance(
            name,
            self.config,
            agenda=self.agenda,
            clock=self.clock,
            deliver=self._deliver,
            on_rows=self._on_rows,
        )
        instance.experts_ready = self._experts_ready
        self.attention[name] = instance
        self.clock.attention = len(self.attention)

    def _attention_down(self, name: str) -> None:
        instance = self.attention.pop(name)
        self.clock.attention = len(self.attention)
        instance.die()
        self.gateway.lost(name)

    def _attention_drains(self, name: str) -> None:
        instance = self.attention[name]
        instance.drain()
        error = Unavailable("the attention instance is shutting down", code="draining")
        self.agenda.after(self.config.drain_s, lambda: None if instance.dead else instance.abort(error))

    def _on_view(self, view: ClusterView) -> None:
        self.gateway.on_view(view)

    def _deliver(self, instance: AttentionInstance, actions: Sequence[Action], at_s: float) -> None:
        self.gateway.take(instance, actions, at_s)

    def _expert_lost(self) -> None:
        """Those that wait for its answer notice, and send the layer again to other replicas."""
        if self._experts_ready:
            for instance in tuple(self.attention.values()):
                instance.late(self.config.notice_s)

    def _experts_serving(self, count: int) -> None:
        """So many expert instances have every expert between them; none: some expert is nowhere."""
        if count and count != self.clock.experts:
            self.clock.experts = count
            self._retime()
        if bool(count) == self._experts_ready:
            return
        self._experts_ready = bool(count)
        for instance in tuple(self.attention.values()):
            if count:
                instance.regain_experts()
            else:
                instance.lose_experts()

    def _on_rows(self) -> None:
        if len(self.attention) > 1 and self.clock.has_shifted():
            self._retime()

    def _retime(self) -> None:
        for instance in self.attention.values():
            instance.retime()

    # -- faults and scaling ----------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        target = fault.target
        if target in ("attention", "expert", "node"):
            some = [p for p in self.control.processes if p.role != "gateway" and p.state == "ready"]
            names = [p.name for p in some if p.role == target] or sorted({p.node for p in some if target == "node"})
            if not names:
                return
            target = self._random.choice(names)
        self.records.faults.append(Struck(self.agenda.now, self.control.kill(target, back_s=fault.back_s)))

    def _observe(self) -> None:
        scaler = self._scaler
        assert scaler is not None
        decision = scaler.observe(self._observer.look(), self.agenda.now)
        if decision.changes:
            self.decisions.append(decision)
            wanted = decision.wanted
            self.records.sizes.append(
                SizeChange(self.agenda.now, wanted.attention, wanted.experts, decision.reason.value)
            )
            self.control.scale(wanted)
        self.agenda.after(self.config.observe_s, self._observe)

"""Random histories of a cluster: who a view names has loaded or is gone, numbers only grow, and it recovers."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from janus.core.membership import FROZEN_MOST_S
from janus.core.membership_events import (
    Action,
    Event,
    LeaveSeen,
    MarkFailed,
    RefuseDuplicate,
    SendFatal,
    SendLoad,
    SendView,
    Tick,
)
from janus.core.placement import Placement
from janus.messages.control import InstanceState, PlacementTable
from tests.core.cluster_harness import beat, check_view, cluster, loaded, lost, registered, role_of

EXPERTS = ("expert-0", "expert-1", "expert-2", "expert-3")
EVERYONE = (*EXPERTS, "attention-0", "gateway-0")


class MembershipMachine(RuleBasedStateMachine):
    @initialize(expected=st.integers(1, 3), slots=st.sampled_from([0, 2, 4]))
    def start(self, expected: int, slots: int) -> None:
        self.now = 0.0
        self.slots = slots
        self.roster_experts = EXPERTS[:expected]
        self.membership = cluster(experts=expected)
        #: {name: incarnation} of the processes that run and believe to be registered.
        self.running: dict[str, str] = {}
        self.draining: set[str] = set()
        self.births = 0
        #: (name, incarnation, epoch) that a process was asked to load, and has loaded.
        self.asked: list[tuple[str, str, int]] = []
        self.has_loaded: set[tuple[str, str, int]] = set()
        self.tables: dict[int, PlacementTable] = {}
        self.version = self.membership.view.version
        self.epoch = 0

    def feed(self, event: Event) -> list[Action]:
        actions = self.membership.handle(event)
        for action in actions:
            match action:
                case SendView():
                    self.read_view(action)
                case SendLoad():
                    assert self.running.get(action.instance), "only who is there can be asked to load"
                    self.same_table(action.table)
                    self.asked.append((action.instance, self.running[action.instance], action.table.epoch))
                case MarkFailed():
                    self.running.pop(action.instance, None)
                    self.draining.discard(action.instance)
                case _:
                    pass
        for action in actions:  # a process that is told that it cannot be part of this cluster exits
            if isinstance(action, SendFatal) and self.running.get(action.instance) == action.incarnation:
                self.feed(lost(action.instance, incarnation=action.incarnation, now=self.now))
        return actions

    def read_view(self, action: SendView) -> None:
        view = action.view
        check_view(view)
        assert view.version == self.version + 1
        self.version = view.version
        if view.placement is None:
            return
        self.same_table(view.placement)
        assert view.placement.epoch >= self.epoch, "an epoch in force never goes back"
        self.epoch = view.placement.epoch
        there = {member.instance: member.incarnation for member in view.members if member.state != "failed"}
        epoch = view.placement.epoch
        holders = {name for name, incarnation in there.items() if (name, incarnation, epoch) in self.has_loaded}
        gone = frozenset(view.placement.instances) - holders
        assert not gone or Placement.from_table(view.placement).without(gone) is not None
        assert view.oldest_epoch <= epoch

    def same_table(self, table: PlacementTable) -> None:
        assert self.tables.setdefault(table.epoch, table) == table, "an epoch number stands for one table"

    # -- what may happen -------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(EVERYONE))
    def arrive(self, name: str) -> None:
        """A process starts; with the name of a live one it is refused."""
        self.births += 1
        incarnation = f"i{self.births}"
        live = name in self.running
        if not live:
            self.running[name] = incarnation
        slots = self.slots if role_of(name) == "expert" else 0
        actions = self.feed(registered(name, incarnation=incarnation, now=self.now, slots=slots))
        assert any(isinstance(action, RefuseDuplicate) for action in actions) == live

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def reconnect(self, data: st.DataObject) -> None:
        """The same process over a new link, whether or not the loss of the old one was seen."""
        name = data.draw(st.sampled_from(sorted(self.running)))
        incarnation = self.running[name]
        if data.draw(st.booleans()):
            self.feed(lost(name, incarnation=incarnation, now=self.now))
            self.running[name] = incarnation
        slots = self.slots if role_of(name) == "expert" else 0
        self.feed(registered(name, incarnation=incarnation, now=self.now, slots=slots))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.feed(lost(name, incarnation=self.running[name], now=self.now))
        assert name not in self.running

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.feed(LeaveSeen(instance=name, reason="SIGTERM", now=self.now, incarnation=self.running[name]))
        self.draining.add(name)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.asked) - 1))
        self.finish_load(index)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def fail_to_load(self, data: st.DataObject) -> None:
        """At the start it ends the instance; later the move is rolled back, and the one in force stays."""
        name, incarnation, epoch = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        before = self.membership.view.placement
        self.feed(loaded(name, epoch, incarnation=incarnation, now=self.now, error="the disk is gone"))
        after = self.membership.view.placement
        if before is not None and self.running.get(name) == incarnation:
            assert after is not None
            assert after.epoch == before.epoch

    def finish_load(self, index: int) -> None:
        name, incarnation, epoch = self.asked.pop(index)
        if self.running.get(name) == incarnation:
            self.has_loaded.add((name, incarnation, epoch))
        # What a process said before it died may still be on its way.
        self.feed(loaded(name, epoch, incarnation=incarnation, now=self.now))

    @rule(seconds=st.floats(0.1, 5.0), silent=st.sets(st.sampled_from(EVERYONE), max_size=2))
    def time_passes(self, seconds: float, silent: set[str]) -> None:
        self.now += seconds
        for name in sorted(set(self.running) - silent):
            state: InstanceState = "draining" if name in self.draining else "ready"
            oldest = self.epoch if role_of(name) == "attention" else 0
            self.feed(beat(name, state=state, now=self.now, oldest_epoch=oldest))
        self.feed(Tick(now=self.now))

    # -- and how it ends -------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """When everybody expected is there and has loaded, the cluster serves, on all its experts."""
        if not hasattr(self, "membership"):
            return
        for name in sorted(self.draining & set(self.running)):
            self.feed(lost(name, incarnation=self.running[name], now=self.now))
        for name in (*self.roster_experts, "attention-0", "gateway-0"):
            if name not in self.running:
                self.arrive(name)
        self.now += FROZEN_MOST_S  # whoever could not load may try again
        for name in sorted(self.running):
            self.feed(beat(name, now=self.now))
        for _ in range(10):
            while self.asked:
                self.finish_load(0)
            self.time_passes(0.1, set())
        view = self.membership.view
        if self.slots and self.slots * len(self.roster_experts) < 4 and view.missing:
            return  # too small for the model from the start: its experts were told so, and have exited
        assert view.missing == []
        wanted = {name for name in self.running if role_of(name) == "expert"}
        if self.slots == 0 or self.slots * len(wanted) >= 4:
            assert view.placement is not None
            assert set(view.placement.instances) == wanted
            held = [len(layer) for name in wanted for layer in Placement.from_table(view.placement).replicas(name)]
            assert max(held) <= (self.slots or 4)
            assert self.membership.degraded == []


MembershipMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMembershipMachine = MembershipMachine.TestCase

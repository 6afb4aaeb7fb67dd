"""Placement epochs, made before broken: which placement is being loaded, which is in force, and what comes next.

An epoch number stands for one table, for ever. A table comes into force when every instance in it has loaded its
replicas. What is wanted (the goal) is reached in one epoch or, where slots are still needed by dispatches of older
epochs, in several. See docs/elasticity.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from janus.core.epoch import Epoch, is_same, without_leavers
from janus.core.goals import Candidate, Goal, Goals, ModelShape
from janus.core.membership_events import Action, Log, SendLoad
from janus.core.placement import Placement
from janus.core.placing.contract import Activity, Held, Host, PlacingPolicy, PlacingRequest
from janus.core.placing.slotting import next_step
from janus.messages.control import Move, PlacementTable


class PlacementEpochs:
    """Issues epochs for the expert instances at hand. Pure: returns actions, sends nothing."""

    def __init__(self, shape: ModelShape, *, policy: PlacingPolicy, fill: int = 0) -> None:
        """``fill``: slots per instance and layer that should be used; 0 = as many as each instance says, or an even
        share.
        """
        self.shape = shape
        self._goals = Goals(shape, policy=policy, fill=fill)
        self._last_number = 0
        self._candidates: dict[str, Candidate] = {}
        self._in_force: Epoch | None = None
        #: Were in force before, and a dispatch may still name them.
        self._older: list[Epoch] = []
        self._pending: Epoch | None = None
        self._goal: Goal | None = None
        #: The newest placement that attention instances used before this controller was started.
        self._known: Placement | None = None
        #: Why the goal is not pursued; empty when it is.
        self.stuck = ""
        self.last_move: Move | None = None

    # -- what is known ---------------------------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """Why the instances at hand cannot hold the model; empty when they can."""
        return self._goals.problem

    def use_activity(self, activity: Activity) -> None:
        """Place by ``activity`` from the next change on."""
        self._goals.activity = activity

    @property
    def in_force(self) -> PlacementTable | None:
        """The table that dispatches may use now; instances in it that are gone are to be planned without."""
        return self._in_force.table if self._in_force is not None and self._in_force.is_covered(self._alive) else None

    @property
    def was_in_force(self) -> bool:
        """Whether any epoch ever was."""
        return self._in_force is not None

    @property
    def placement(self) -> Placement | None:
        """The placement in force, or last in force."""
        return None if self._in_force is None else self._in_force.placement

    @property
    def waiting_for(self) -> dict[int, list[str]]:
        """The epoch being loaded, and which instances have not reported it."""
        return {} if self._pending is None else {self._pending.number: sorted(self._pending.waiting_for)}

    @property
    def settled(self) -> bool:
        """Whether the placement is what it should be, and every instance in it is there."""
        goal = self._goal
        whole = self._in_force is not None and not self._in_force.gone(self._alive)
        return whole and self._pending is None and goal is not None and goal.reached

    @property
    def knows(self) -> bool:
        """Whether a placement from before the start of this controller is known."""
        return self._known is not None

    @property
    def oldest_in_force(self) -> int:
        """The oldest epoch that a dispatch may still name, as far as it is known here; 0 for none."""
        return min((epoch.number for epoch in self._named()), default=0)

    def replicas(self) -> list[list[int]]:
        """``[layer][expert]``: replicas in the placement in force that are there; empty when none is."""
        if self._in_force is None:
            return []
        gone = self._in_force.gone(self._alive)
        placement = self._in_force.placement.without(gone) if gone else self._in_force.placement
        return [] if placement is None else placement.replica_count.tolist()

    def request(self) -> PlacingRequest | None:
        """Return what a policy would be asked now, to find a better placement; ``None`` while things change."""
        if not self.settled or self._goal is None or self._in_force is None:
            return None
        return self._goals.request(self._goal.hosts, self._candidates, self._current())

    # -- events ----------------------------------------------------------------------------------------------------

    def saw_epoch(self, number: int) -> None:
        """Never issue a number up to this one: an instance has loaded it from an earlier controller."""
        self._last_number = max(self._last_number, number)

    def remember(self, table: PlacementTable) -> None:
        """An attention instance plans with ``table``, which an earlier controller has issued.

        Raises:
            ValueError: it is no placement of this model.
        """
        placement = Placement.from_table(table)
        if (placement.num_layers, placement.num_experts) != (self.shape.num_layers, self.shape.num_experts):
            raise ValueError(
                f"the placement has {placement.num_layers} layers of {placement.num_experts} experts, "
                f"the model {self.shape.num_layers} of {self.shape.num_experts}"
            )
        self.saw_epoch(placement.epoch)
        if self._in_force is None and (self._known is None or placement.epoch > self._known.epoch):
            self._known = placement

    def reconcile(
        self, candidates: Sequence[Candidate], *, complete: bool, now: float, recalled: bool = False
    ) -> list[Action]:
        """Return what to do about the expert instances that exist now.

        Args:
            candidates: those that are there, in order.
            complete: whether all are there that the first placement waits for.
            now: seconds of any monotonic clock.
            recalled: whether what an earlier controller had in force is taken over although some of it are not there.
        """
        self._candidates = {candidate.name: candidate for candidate in candidates}
        actions: list[Action] = []
        if self._in_force is None:
            actions += self._adopt(complete=complete or recalled, now=now)
        else:
            self._know_again(self._in_force)
        pending = self._pending
        if pending is not None and (gone := pending.gone(self._alive)):
            actions += self._give_up(f"{', '.join(sorted(gone))} went away", now)
        if self._returned() and pending is not None and self._goal is not None and self._goal.redo_at is not None:
            # It was only a link: what the others were to load in its place is not needed.
            actions += self._give_up("the lost instance is back", now)
            self._goal = None
        actions += self._choose(complete=complete, now=now)
        return [*actions, *self._advance(now)]

    def tick(self, now: float) -> list[Action]:
        """Time has passed: an instance that was expected back may be given up."""
        goal = self._goal
        if goal is None or goal.redo_at is None or now < goal.redo_at or self._pending is not None:
            return []
        goal.redo_at = None
        return [*self._aim("death", self._goals.hosts(self._candidates, self._current())), *self._advance(now)]

    def loaded(self, instance: str, number: int, *, now: float, nbytes: int = 0) -> list[Action]:
        """Take an instance's report; the epoch comes into force with the last one."""
        epoch = self._pending
        if epoch is None or epoch.number != number or instance not in epoch.waiting_for:
            return []
        epoch.waiting_for.remove(instance)
        if self.last_move is not None:
            self.last_move = msgspec.structs.replace(self.last_move, bytes_read=self.last_move.bytes_read + nbytes)
        if epoch.waiting_for:
            return []
        self._pending = None
        self._enforce(epoch)
        self._outcome("in force", now - epoch.issued_at)
        return [_log("placement_in_force", epoch), *self._advance(now)]

    def failed(self, instance: str, number: int, problem: str, *, now: float) -> list[Action]:
        """``instance`` could not load its part of an epoch: it is rolled back, the one in force stays."""
        if self._pending is None or self._pending.number != number:
            return []
        self._goal = None  # made for an instance that cannot do its part
        return self._give_up(f"{instance}: {problem}", now, level="error")

    def retire(self, oldest: int, *, now: float) -> list[Action]:
        """No dispatch names an epoch below ``oldest`` any more: the slots that only those used are free."""
        kept = [epoch for epoch in self._older if epoch.number >= oldest]
        if len(kept) == len(self._older):
            return []
        self._older = kept
        return self._advance(now)

    def propose(self, request: PlacingRequest, held: Held, *, a_max: tuple[float, float], now: float) -> list[Action]:
        """Move towards ``held``, which a policy answered to ``request``, unless things have changed since."""
        if not self.settled or self._goal is None or self._in_force is None:
            return []
        if request.current is not self._in_force.placement or request.hosts != self._goal.hosts:
            return []
        self._goal = Goal.of("balance", request.hosts, held, a_max=a_max)
        return self._advance(now)

    # -- parts -----------------------------------------------------------------------------------------------------

    @property
    def _alive(self) -> dict[str, str]:
        return {name: candidate.incarnation for name, candidate in self._candidates.items()}

    def _named(self) -> list[Epoch]:
        """The epochs that a dispatch may name, in order."""
        return [*self._older, *([self._in_force] if self._in_force is not None else [])]

    def _returned(self) -> bool:
        return self._in_force is not None and not self._in_force.gone(self._alive)

    def _adopt(self, *, complete: bool, now: float) -> list[Action]:
        """Take what an earlier controller had in force, when those who hold it are there."""
        known = self._known
        if known is None:
            return []
        holders = {
            name: candidate.incarnation if candidate.has_loaded(known.epoch) else ""
            for name in known.instances
            if (candidate := self._candidates.get(name)) is not None
        }
        there = {name for name, incarnation in holders.items() if incarnation}
        if not complete and len(there) < len(known.instances):
            return []
        epoch = Epoch(known, {name: holders.get(name, "") for name in known.instances}, now)
        epoch.waiting_for.clear()
        self._enforce(epoch)
        self._goals.slots = known.slots_per_instance
        return [_log("placement_adopted", epoch)]

    def _know_again(self, epoch: Epoch) -> None:
        """One that was not there when ``epoch`` was adopted has come, and has what it had."""
        for name, incarnation in epoch.holders.items():
            candidate = self._candidates.get(name)
            if not incarnation and candidate is not None and epoch.number in candidate.loaded_epochs:
                epoch.holders[name] = candidate.incarnation

    def _enforce(self, epoch: Epoch) -> None:
        if self._in_force is not None:
            self._older.append(self._in_force)
        self._in_force = epoch

    def _give_up(self, problem: str, now: float, *, level: Literal["warning", "error"] = "warning") -> list[Action]:
        epoch = self._pending
        if epoch is None:
            return []
        self._pending = None
        if self._goal is not None:
            self._goal.reached = False
        self._outcome("rolled back", now - epoch.issued_at, problem)
        fields: dict[str, object] = {"epoch": epoch.number, "problem": problem}
        return [Log(level=level, event="placement_rolled_back", fields=fields)]

    def _choose(self, *, complete: bool, now: float) -> list[Action]:
        """Set the goal, if what is there is not what the goal was made for."""
        goal, hosts = self._goal, self._goals.hosts(self._candidates, self._current())
        if not hosts or (self._in_force is None and not complete):
            self._goals.problem, self._goal = "", None  # nobody to place on: who is missing is told elsewhere
            return []
        if self._in_force is None:
            return [] if goal is not None and goal.hosts == hosts else self._aim("start", hosts)
        if self._in_force.gone(self._alive):
            if goal is not None and goal.redo_at is not None and goal.hosts == hosts:
                return []
            return self._mend(hosts, now)
        if goal is None or goal.hosts != hosts:
            before = {host.name for host in goal.hosts} if goal is not None else set(self._in_force.placement.instances)
            names = {host.name for host in hosts}
            return self._aim("join" if names - before else "leave" if before - names else "balance", hosts)
        return []

    def _aim(self, reason: str, hosts: tuple[Host, ...]) -> list[Action]:
        known = self.problem
        self._goal = self._goals.aim(reason, self._goals.request(hosts, self._candidates, self._current()))
        return self._told(known)

    def _mend(self, hosts: tuple[Host, ...], now: float) -> list[Action]:
        """Only what is nowhere is brought back at once; the rest waits, as the lost instance may come back."""
        assert self._in_force is not None
        planned = {host.name for host in self._goal.hosts} if self._goal is not None else set()
        if planned and {host.name for host in hosts} - planned:
            return self._aim("join", hosts)  # somebody came, perhaps the lost one: no need to wait
        known = self.problem
        self._goal = self._goals.mend(self._in_force.renamed(self._alive), hosts, now)
        return self._told(known)

    def _told(self, known: str) -> list[Action]:
        """Log that the instances are too few, when that is news."""
        if not self.problem or self.problem == known:
            return []
        return [Log(level="error", event="placement_infeasible", fields={"problem": self.problem})]

    def _current(self) -> Placement | None:
        return None if self._in_force is None else self._in_force.renamed(self._alive)

    def _advance(self, now: float) -> list[Action]:
        """Issue the next epoch on the way to the goal, if there is one."""
        goal = self._goal
        if goal is None or goal.reached or self._pending is not None:
            return []
        self._goals.slots = self._goals.slots or max(host.capacity for host in goal.hosts)
        newest = self._current()
        serving = () if newest is None else newest.instances
        names = [name for name in self._candidates if name in goal.held or name in serving]
        nothing: list[tuple[int, ...]] = [()] * self.shape.num_layers
        step = next_step(
            epoch=self._last_number + 1,
            num_experts=self.shape.num_experts,
            slots=self._goals.slots,
            hosts=names,
            nodes=[self._candidates[name].node for name in names],
            target=tuple(
                tuple(goal.held.get(name, nothing)[layer] for name in names) for layer in range(self.shape.num_layers)
            ),
            current=newest,
            # By one that has lost an expert nothing can be dispatched: its slots may be taken over.
            in_use=[epoch.renamed(self._alive) for epoch in self._named() if epoch.is_covered(self._alive)],
            capacities={host.name: host.capacity for host in goal.hosts},
        )
        self.stuck = ""
        placement = None if step is None else without_leavers(step.placement, goal.held)
        if step is None or placement is None or (newest is not None and is_same(placement, newest)):
            goal.reached = step is not None and step.complete
            if not goal.reached and not self._older:
                self.stuck = "no slot is spare to move replicas through; give expert instances more slots"
                goal.reached = True
                fields: dict[str, object] = {"reason": goal.reason, "problem": self.stuck}
                return [Log(level="warning", event="placement_unreachable", fields=fields)]
            return []
        goal.reached = step.complete
        self._last_number = placement.epoch
        holders = {name: self._candidates[name].incarnation for name in placement.instances}
        epoch = self._pending = Epoch(placement, holders, now)
        self.last_move = Move(
            epoch=placement.epoch,
            reason=goal.reason,
            outcome="loading",
            replicas=len(step.loads),
            a_max_before=goal.a_max[0],
            a_max_after=goal.a_max[1],
        )
        sends = [SendLoad(instance=name, table=epoch.table) for name in epoch.holders]
        return [_log("placement_issued", epoch, reason=goal.reason, loads=len(step.loads)), *sends]

    def _outcome(self, outcome: str, seconds: float, problem: str = "") -> None:
        if self.last_move is not None:
            self.last_move = msgspec.structs.replace(self.last_move, outcome=outcome, seconds=seconds, problem=problem)


def _log(event: str, epoch: Epoch, **more: object) -> Log:
    fields: dict[str, object] = {"epoch": epoch.number, "experts": list(epoch.holders), **more}
    return Log(level="info", event=event, fields=fields)

"""One layer of ``janus.core.placing.slotting``: what can be added, dropped, parked and lent now. G hosts, C slots."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from janus.core.placement import EMPTY

_Table = npt.NDArray[np.int32]

#: Where an expert is that the target has on a further host: nowhere, on hosts that it is to leave, on others too.
_NOWHERE, _STALE, _KEPT = range(3)


class _Missing(NamedTuple):
    """A replica that the target has and the current placement has not; in this order they are added."""

    urgency: int
    #: Whether another missing replica of the expert comes first.
    further: bool
    expert: int
    host: int


class LayerSlots:
    """The slots of one layer, from the current placement to the next."""

    def __init__(
        self, want: npt.NDArray[np.bool_], now: _Table, in_use: list[_Table], limits: npt.NDArray[np.int64]
    ) -> None:
        """``want`` bool[G, E] is the target, ``now`` and ``in_use`` int32[G, C], ``limits`` int[G] what fits."""
        self._want, self._in_use = want, in_use
        #: int32[G, C], the next placement.
        self.slots = now.copy()
        self._have: npt.NDArray[np.bool_] = np.zeros(want.shape, dtype=bool)
        host, slot = np.nonzero(now != EMPTY)
        self._have[host, now[host, slot]] = True
        #: bool[G, C]: slots that an epoch in use has an expert in.
        self._busy = np.zeros(now.shape, dtype=bool)
        for table in in_use:
            self._busy |= table != EMPTY
        self._taken = self._busy | (now != EMPTY)
        self._limits = limits

    @property
    def complete(self) -> bool:
        """Whether the next placement is the target."""
        return bool((self._have == self._want).all())

    def advance(self) -> bool:
        """Do what can be done now. Returns False when an expert is nowhere and has no room anywhere."""
        before = self.slots.copy()
        self._drop_stale()  # makes room at once where the current placement is not in use
        missing = self._order()
        self._add_all([at for at in missing if at.urgency == _NOWHERE])
        if not self._rescue():
            return False
        self._add_all(missing)
        self._drop_stale()
        if np.array_equal(self.slots, before) and not self.complete and not self._waits():
            self._relieve()
        return True

    def _add_all(self, missing: list[_Missing]) -> None:
        """Add the replicas that have room."""
        reserved = set()
        for urgency, _, expert, host in missing:
            # What was lent may not take its place back before the one that it was lent to.
            if not self._have[host, expert] and (urgency < _KEPT or host not in reserved):
                self._add(host, expert)
                if not self._have[host, expert]:
                    reserved.add(host)

    def _order(self) -> list[_Missing]:
        """Return what is missing: those that are nowhere first, then those that let stale replicas go.

        Of the replicas of an expert the one comes first whose host has the fewest such: a placement numbers replicas by
        slot, and new slots are taken from the lowest, so first replicas are spread.
        """
        lacks = self._want & ~self._have
        kept = (self._have & self._want).any(axis=0)
        urgency = np.where(kept, _KEPT, np.where(self._have.any(axis=0), _STALE, _NOWHERE)).tolist()
        first = [-1] * len(urgency)
        firsts = np.zeros(len(self.slots), dtype=np.int64)
        for expert in np.argsort(lacks.sum(axis=0), kind="stable").tolist():
            hosts = np.flatnonzero(lacks[:, expert])
            if len(hosts):
                first[expert] = int(hosts[firsts[hosts].argmin()])
                firsts[first[expert]] += 1
        places = zip(*(each.tolist() for each in np.nonzero(lacks)), strict=True)
        return sorted(_Missing(urgency[expert], host != first[expert], expert, host) for host, expert in places)

    def _add(self, host: int, expert: int) -> None:
        """Put ``expert`` where an epoch in use has it on ``host``, else in the first slot that is free in all."""
        for table in self._in_use:
            for slot in np.flatnonzero(table[host] == expert).tolist():
                others = {int(each[host, slot]) for each in (*self._in_use, self.slots)}
                if others <= {expert, EMPTY}:
                    self._put(host, slot, expert)
                    return
        if self._room(host) > 0:
            self._put(host, int(np.argmin(self._taken[host])), expert)

    def _put(self, host: int, slot: int, expert: int) -> None:
        self.slots[host, slot] = expert
        self._have[host, expert] = self._taken[host, slot] = True

    def _room(self, host: int) -> int:
        """Return how many replicas fit on ``host`` beside all that epochs in use and the next one have there."""
        return int(self._limits[host] - np.count_nonzero(self._taken[host]))

    def _rescue(self) -> bool:
        """Put each expert that is nowhere, for its own hosts have no room, on the emptiest host."""
        for expert in np.flatnonzero(~self._have.any(axis=0)).tolist():
            host = self._place_for(expert)
            if host < 0:
                return False
            self._add(host, expert)
        return True

    def _place_for(self, expert: int) -> int:
        """Return the host with the most room for a replica that no target wants there; -1 when there is none.

        Hosts that are to hold nothing are about to leave, so they come last.
        """
        stays = set(np.nonzero(self._want)[0].tolist())
        open_ = [host for host in np.flatnonzero(~self._have[:, expert]).tolist() if self._room(host) > 0]
        return max(open_, key=lambda host: (host in stays, self._room(host)), default=-1)

    def _drop_stale(self) -> None:
        """Drop what the target has not there and others have, each expert's last replica never."""
        for host, expert in np.argwhere(self._have & ~self._want).tolist():
            if np.count_nonzero(self._have[:, expert]) > 1:
                self._drop(host, expert)

    def _drop(self, host: int, expert: int) -> None:
        slot = int(np.flatnonzero(self.slots[host] == expert)[0])
        self.slots[host, slot] = EMPTY
        self._have[host, expert] = False
        self._taken[host, slot] = self._busy[host, slot]

    def _waits(self) -> bool:
        """Whether a host with a missing replica gets room when older epochs are given back."""
        short = (self._want & ~self._have).any(axis=1)
        return bool((self._taken[short] & (self.slots[short] == EMPTY)).any())

    def _relieve(self) -> None:
        """Make room on the host that misses most, for later: park its stale replicas, or lend one that it keeps."""
        missing = self._want & ~self._have
        for host in np.argsort(-missing.sum(axis=1), kind="stable").tolist():
            lacks = int(missing[host].sum())
            if lacks and self._park(host, lacks):
                return
        for host in np.argsort(-missing.sum(axis=1), kind="stable").tolist():
            frees_another = missing[host, ~(self._have & self._want).any(axis=0)].any()
            spare = np.flatnonzero(self._have[host] & self._want[host] & (self._have.sum(axis=0) > 1))
            if frees_another and len(spare):
                self._drop(host, int(spare[0]))
                return

    def _park(self, host: int, lacks: int) -> bool:
        """Put up to ``lacks`` of the stale replicas of ``host`` on others that have room."""
        parked = False
        for expert in np.flatnonzero(self._have[host] & ~self._want[host]).tolist()[:lacks]:
            place = self._place_for(expert)
            if place < 0:
                break
            self._add(place, expert)
            self._drop(host, expert)
            parked = True
        return parked

"""What is going to happen, and when: the event queue of the simulation."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Event:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("cancelled", "do")

    def __init__(self, do: Callable[[], None]) -> None:
        self.do = do
        self.cancelled = False

    def cancel(self) -> None:
        """Forget it; harmless when it has happened."""
        self.cancelled = True


class Agenda:
    """Virtual time. Events of the same moment happen in the order in which they were entered."""

    def __init__(self) -> None:
        #: Seconds since the start.
        self.now = 0.0
        self.events = 0
        self._queue: list[tuple[float, int, Event]] = []
        self._order = itertools.count()

    def at(self, when: float, do: Callable[[], None]) -> Event:
        """Do something at ``when``, or now if that is past."""
        event = Event(do)
        heapq.heappush(self._queue, (max(when, self.now), next(self._order), event))
        return event

    def after(self, delay_s: float, do: Callable[[], None]) -> Event:
        """Do something in ``delay_s`` seconds."""
        return self.at(self.now + delay_s, do)

    def run(self, until: float, *, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass up to ``until``, or until ``done`` says so after an event."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, event = heapq.heappop(queue)
            if event.cancelled:
                continue
            self.events += 1
            event.do()
            if done():
                return
        self.now = max(self.now, until)

"""Which instances hang: their process lives, and the controller has given them up. Pure, but for what it remembers."""

from __future__ import annotations

from collections.abc import Iterable

from janus.cluster.instances import Started
from janus.messages.control import StatusReport


class HungWatch:
    """Fed with what the controller says and which processes live; answers who has hung for too long."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        #: Instance and pid -> since when.
        self._since: dict[tuple[str, int], float] = {}

    def hung(self, report: StatusReport, living: Iterable[Started], *, now: float) -> list[Started]:
        """Return those that the controller counts as failed for ``after_s`` by now, and forget those that recovered.

        A process that has just been started in the place of a failed one listens elsewhere than the one that failed,
        and is left alone.
        """
        failed = {
            (member.instance, member.port, member.ops_port)
            for member in report.view.members
            if member.state == "failed"
        }
        suspects = {(each.name, each.pid): each for each in living if (each.name, each.port, each.ops_port) in failed}
        self._since = {key: self._since.get(key, now) for key in suspects}
        return [suspects[key] for key, since in self._since.items() if now - since >= self._after_s]

    def silent(self, controller: Started, *, now: float) -> bool:
        """Note that the controller, which accepts connections, did not answer; whether it hangs for too long.

        It is given twice the time: nobody else has judged it, and requests do not wait for it.
        """
        return now - self._since.setdefault((controller.name, controller.pid), now) >= 2 * self._after_s

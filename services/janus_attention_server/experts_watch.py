"""Whether the experts can be reached, and for how long requests are still welcome when they cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from janus.exchange.remote import RemoteExchange


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsState:
    """Whether the experts can be reached, in the words of ``/health``."""

    ready: bool
    reason: str
    unreachable: list[str]


class ExpertsWatch:
    """For the step loop: asked to look whenever links or placement have changed."""

    def __init__(
        self, *, recovery_timeout_s: float, tell: Callable[[ExpertsState], None], unreachable: Callable[[], list[str]]
    ) -> None:
        """``tell``: takes what is found. ``unreachable``: the expert instances that should be linked and are not."""
        self._recovery_timeout_s = recovery_timeout_s
        self._tell = tell
        self._unreachable = unreachable
        self._reached = False
        #: Since when, by the loop's clock, experts that could be reached cannot; ``None``: they can, or never could.
        self._lost_at: float | None = None
        self._give_up: asyncio.TimerHandle | None = None

    def look(self, remote: RemoteExchange | None) -> None:
        """Tell whether the experts can be reached over ``remote``; ``None``: they are in this process."""
        self.close()
        if remote is None or remote.ready():
            self._reached, self._lost_at = True, None
            without = () if remote is None else remote.without()
            reason = f"plans without {', '.join(without)}" if without else ""
            self._tell(ExpertsState(ready=True, reason=reason, unreachable=self._unreachable()))
            return
        missing = remote.missing()
        reason = f"not linked to {', '.join(missing)}" if missing else "no placement covers every expert"
        recovering = self._is_recovering(remote)
        if recovering:
            reason = f"requests wait for experts to come back: {reason}"
        self._tell(ExpertsState(ready=recovering, reason=reason, unreachable=self._unreachable()))

    def _is_recovering(self, remote: RemoteExchange) -> bool:
        """Whether requests are still welcome: lost experts are mostly back sooner than a client would ask again."""
        if not self._reached:
            return False
        loop = asyncio.get_running_loop()
        if self._lost_at is None:
            self._lost_at = loop.time()
        left = self._lost_at + self._recovery_timeout_s - loop.time()
        if left <= 0:
            return False
        self._give_up = loop.call_later(left, self.look, remote)
        return True

    def close(self) -> None:
        """Look no more by itself, until it is asked to."""
        if self._give_up is not None:
            self._give_up.cancel()
            self._give_up = None

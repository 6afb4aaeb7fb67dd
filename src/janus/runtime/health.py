"""What an instance says of itself, to the controller and to whoever asks over HTTP: the same words in both places."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from janus.messages.control import InstanceState


@dataclass(slots=True)
class Health:
    """State of one instance. ``ready`` with a non-empty ``reason`` reads as degraded."""

    state: InstanceState = "joining"
    reason: str = "starting"
    since: float = field(default_factory=time.monotonic)

    def set(self, state: InstanceState, reason: str = "") -> bool:
        """Change the state; returns whether anything changed. Nothing leaves ``draining`` but ``failed``."""
        if self.state == "draining" and state != "failed":
            return False
        if (state, reason) == (self.state, self.reason):
            return False
        self.state, self.reason, self.since = state, reason, time.monotonic()
        return True

    @property
    def serving(self) -> bool:
        """Whether new work is welcome."""
        return self.state == "ready"

    def report(self) -> dict[str, object]:
        """The body of ``/health``."""
        status = "degraded" if self.state == "ready" and self.reason else self.state
        return {"status": status, "reason": self.reason, "for_s": round(time.monotonic() - self.since, 3)}

"""The checks of ``janus doctor``: each looks at one thing and says what it found and what to do about it."""

from janus.cluster.checks.finding import Finding, Level

__all__ = ["Finding", "Level"]

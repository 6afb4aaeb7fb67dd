"""One error out of a task group's many: each names a cause, and a user needs one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from janus.errors import JanusError


@contextmanager
def one_error() -> Iterator[None]:
    """Raise the first JanusError of an exception group that comes out, or its first error when it has none."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours = group.subgroup(JanusError)
        error: BaseException = ours if ours is not None else group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group

"""Listening as an instance does: at its own options, with errors that name them."""

from __future__ import annotations

from collections.abc import Callable

from janus.config.options import CommonOptions
from janus.errors import ConfigError
from janus.messages.control import Identity, Refused
from janus.transport.buffers import BufferPool
from janus.transport.endpoint import Listener, listen
from janus.transport.link import LinkHandler


async def listen_as(
    common: CommonOptions,
    identity: Identity,
    *,
    admit: Callable[[Identity], Refused | None],
    handler_factory: Callable[[Identity], LinkHandler],
    pool: BufferPool | None = None,
) -> Listener:
    """Accept links at ``common.host``:``common.port`` on the running loop. ``pool``: where frames are received.

    Raises:
        ConfigError: the port is taken.
    """
    try:
        return await listen(
            common.transport,
            common.host,
            common.port,
            identity=identity,
            secret=common.secret.encode(),
            admit=admit,
            handler_factory=handler_factory,
            pool=pool,
        )
    except OSError as error:
        raise ConfigError(
            "--port", f"cannot listen on {common.host}:{common.port} ({error})", "choose another, or 0 for any free one"
        ) from error

"""``janus scale``, ``janus drain``, ``janus restart``: asked of the ``janus up`` that runs the cluster."""

from __future__ import annotations

from typing import Any

from janus.cluster.control_client import ControlClient
from janus.errors import LaunchError
from janus_cli.console import tell
from janus_cli.options import DrainOptions, RestartOptions, ScaleOptions
from janus_cli.up import show_launch_error


def scale(options: ScaleOptions) -> int:
    """Change the numbers of instances; returns the exit status."""
    return _ask(options.name, "scale", options.body())


def drain(options: DrainOptions) -> int:
    """Let one instance leave; returns the exit status."""
    return _ask(options.name, "drain", {"instance": options.instance})


def restart(options: RestartOptions) -> int:
    """Replace instances; returns the exit status."""
    body = {"instances": list(options.instances), "rolling": options.rolling, "in_place": options.in_place}
    return _ask(options.name, "restart", body)


def _ask(cluster: str, operation: str, body: dict[str, Any]) -> int:
    try:
        ControlClient(cluster).ask(operation, body, tell)
    except LaunchError as error:
        show_launch_error(error)
        return 1
    tell("done")
    return 0

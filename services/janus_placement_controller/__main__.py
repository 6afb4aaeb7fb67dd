"""Command line of ``janus-placement-controller``."""

from __future__ import annotations

from janus.config.cli import run_service
from janus.config.options import ControllerOptions


def main() -> None:
    """Entry point."""
    run_service(
        ControllerOptions,
        _run,
        prog="janus-placement-controller",
        help="Keeps the registry of instances and decides which expert lives where. Never on the token path: "
        "what runs goes on without it.",
    )


def _run(options: ControllerOptions) -> int:
    # Imported late, so that --help answers at once.
    from janus.runtime.service import run
    from janus_placement_controller.service import serve

    return run(lambda context: serve(context, options), role="controller", common=options.common)


if __name__ == "__main__":
    main()

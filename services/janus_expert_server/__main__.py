"""Command line of ``janus-expert-server``."""

from __future__ import annotations

from janus.config.cli import run_service
from janus.config.options import ExpertOptions


def main() -> None:
    """Entry point."""
    run_service(
        ExpertOptions,
        _run,
        prog="janus-expert-server",
        help="Holds the experts that the placement-controller assigns to it, and computes what attention-servers send. "
        "Stateless: it can be added, drained or lost at any time.",
    )


def _run(options: ExpertOptions) -> int:
    # Imported late: torch takes seconds, and --help should not.
    from janus.runtime.service import run
    from janus_expert_server.service import serve

    return run(lambda context: serve(context, options), role="expert", common=options.common)


if __name__ == "__main__":
    main()

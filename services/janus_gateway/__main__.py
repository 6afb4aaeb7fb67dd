"""Command line of ``janus-gateway``."""

from __future__ import annotations

from janus.config.cli import run_service
from janus.config.options import GatewayOptions


def main() -> None:
    """Entry point."""
    run_service(
        GatewayOptions,
        _run,
        prog="janus-gateway",
        help="Serves the OpenAI-compatible HTTP endpoint: tokenizes, admits or refuses, and streams text from the "
        "attention-servers, which it finds through the placement-controller.",
    )


def _run(options: GatewayOptions) -> int:
    # Imported late: the HTTP stack takes a second, and --help should not.
    from janus.runtime.service import run
    from janus_gateway.service import serve

    return run(lambda context: serve(context, options), role="gateway", common=options.common)


if __name__ == "__main__":
    main()

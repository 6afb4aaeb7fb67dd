"""Command line of ``janus-attention-server``."""

from __future__ import annotations

from janus.config.cli import run_service
from janus.config.options import AttentionOptions


def main() -> None:
    """Entry point."""
    run_service(
        AttentionOptions,
        _run,
        prog="janus-attention-server",
        help="Runs the attention layers, the router and the KV cache of a model, and batches requests continuously. "
        "Experts are on expert-servers, found through the placement-controller.",
    )


def _run(options: AttentionOptions) -> int:
    # Imported late: torch takes seconds, and --help should not.
    from janus.runtime.service import run
    from janus_attention_server.service import serve

    return run(lambda context: serve(context, options), role="attention", common=options.common)


if __name__ == "__main__":
    main()

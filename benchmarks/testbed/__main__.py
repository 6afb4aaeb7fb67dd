"""``python -m benchmarks.testbed``: check the testbed, or keep one up to run things in; see docs/testbed.md."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from benchmarks.testbed import held
from benchmarks.testbed.check import NODES, check
from benchmarks.testbed.spec import LinkSpec, TestbedError, TestbedUnavailable, check_nodes
from benchmarks.testbed.support import unavailable


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that it takes down what it has up
    try:
        reason = unavailable()
        if reason is not None:
            raise TestbedUnavailable(reason)
        arguments.run(arguments)
    except TestbedUnavailable as error:
        print(f"testbed: not possible here: {error}")
        return 0 if arguments.command == "check" else 1
    except (TestbedError, ValueError) as error:
        print(f"testbed: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.testbed", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    checking = commands.add_parser("check", help="bring one up, measure and try it, take it down")
    checking.set_defaults(run=lambda given: check(check_nodes(given.nodes), _say, given.backend))
    checking.add_argument("--backend", choices=("netem", "emulated"), help="default: netem where the kernel has it")
    up = commands.add_parser("up", help="bring one up and leave it so")
    up.set_defaults(run=_up)
    for command in (checking, up):
        command.add_argument("--nodes", nargs="+", default=NODES, metavar="NAME", help="default: a0 a1 e0 e1")
    up.add_argument("--latency-us", type=float, default=LinkSpec().latency_us, help="one way; default: %(default)s")
    up.add_argument("--rate-gbit", type=float, default=LinkSpec().rate_gbit, help="0: no limit; default: %(default)s")
    commands.add_parser("down", help="take down what `up` brought up").set_defaults(run=_down)
    executing = commands.add_parser("exec", help="run a command in a node: exec NODE -- COMMAND...")
    executing.add_argument("node")
    executing.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")
    executing.set_defaults(run=_exec)
    return parser


def _say(line: str) -> None:
    print(f"testbed: {line}", flush=True)


def _up(arguments: argparse.Namespace) -> None:
    if held.holders():
        raise TestbedError("one is up already; take it down first: python -m benchmarks.testbed down")
    nodes = check_nodes(arguments.nodes)
    spec = LinkSpec(latency_us=arguments.latency_us, rate_gbit=arguments.rate_gbit)
    held.up(nodes, spec)
    _say(f"up: nodes {', '.join(nodes)}; {spec}; run python -m benchmarks.testbed exec NODE -- COMMAND...")


def _down(_: argparse.Namespace) -> None:
    names = held.down()
    _say(f"down: {', '.join(name.node for name in names)}" if names else "none was up")


def _exec(arguments: argparse.Namespace) -> None:
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise ValueError("exec needs a command: exec NODE -- COMMAND...")
    os.execvp("ip", ["ip", "netns", "exec", held.namespace_of(arguments.node), *argv])


if __name__ == "__main__":
    sys.exit(main())

"""Round trips between two processes: a Janus link, the bare wire below it, and plain blocking sockets.

    python benchmarks/transport/pingpong.py [--rounds 400] [--loop uvloop] [--stacks link-shm link-tcp]

Writes one JSON object to stdout: ``rtt_us`` (median and 99th percentile per stack and payload size), ``post_us`` (what
``Link.post`` costs the caller, median), and the conditions. A load of the machine by others is part of the conditions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from janus.errors import LinkError
from janus.messages import PROTOCOL_VERSION, Message
from janus.messages.control import Identity
from janus.transport import InFrame, Kind, Link, TransportKind, connect, listen
from janus.transport.buffers import Buffer
from janus.transport.endpoint import transport
from janus.transport.frame import HEADER_BYTES, pack_fields
from janus.transport.wire import Wire

HOST = "127.0.0.1"
SIZES = (64, 4096, 32 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20)
STACKS = ("link-shm", "wire-shm", "link-ucx", "wire-ucx", "link-tcp", "wire-tcp", "socket")
SECRET = b"benchmark"
Samples = dict[str, list[float]]


def identity(instance: str) -> Identity:
    return Identity(protocol=PROTOCOL_VERSION, role="tool", instance=instance, node="", incarnation="")


class LinkEnd:
    """Echoes on the serving side; on the other, resolves ``arrived``."""

    def __init__(self, *, echo: bool) -> None:
        self._echo = echo
        self.arrived: asyncio.Future[None] | None = None

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        raise AssertionError("no messages here")

    def on_frame(self, link: Link, frame: InFrame) -> None:
        if self._echo:
            out = link.allocate(len(frame.payload))
            out.payload[:] = frame.payload
            link.post(out, kind=Kind.COMBINE)
        elif self.arrived is not None:
            self.arrived.set_result(None)
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        pass


class WireEnd:
    """The same on the bare wire, without header, order or credits; the buffer goes back as it came."""

    def __init__(self, wire: Wire, *, echo: bool) -> None:
        self._wire = wire
        self._echo = echo
        self.arrived: asyncio.Future[None] | None = None
        self.buffer: Buffer | None = None
        wire.start(self)
        wire.max_frame = 1 << 30
        wire.proven = True

    def on_frame(self, buffer: Buffer, nbytes: int) -> None:
        if self._echo:
            self._wire.send(buffer, nbytes)
        elif self.arrived is not None:
            self.buffer = buffer
            self.arrived.set_result(None)

    def on_lost(self, error: LinkError) -> None:
        pass


def ready(port: int) -> None:
    print(port, flush=True)


async def serve_link(kind: TransportKind) -> None:
    end = LinkEnd(echo=True)
    async_listener = await listen(
        kind, HOST, 0, identity=identity("server"), secret=SECRET, handler_factory=lambda _: end
    )
    ready(async_listener.port)
    await asyncio.get_running_loop().create_future()


async def serve_wire(kind: TransportKind) -> None:
    ends: list[WireEnd] = []
    listener = await transport(kind).listen(HOST, 0, lambda wire: ends.append(WireEnd(wire, echo=True)))
    ready(listener.port)
    await asyncio.get_running_loop().create_future()


async def ping_link(kind: TransportKind, port: int, rounds: Callable[[int], int]) -> tuple[Samples, Samples]:
    end = LinkEnd(echo=False)
    link = await connect(kind, HOST, port, identity=identity("client"), secret=SECRET, handler=end)
    rtt: Samples = {}
    posted: Samples = {}
    for size in SIZES:
        rtt[str(size)], posted[str(size)] = [], []
        for _ in range(rounds(size)):
            frame = link.allocate(size)
            start = time.perf_counter()
            end.arrived = asyncio.get_running_loop().create_future()
            link.post(frame, kind=Kind.DISPATCH)
            posted[str(size)].append(time.perf_counter() - start)
            await end.arrived
            rtt[str(size)].append(time.perf_counter() - start)
    await link.close("done")
    return rtt, posted


async def ping_wire(kind: TransportKind, port: int, rounds: Callable[[int], int]) -> tuple[Samples, Samples]:
    wire = await transport(kind).connect(HOST, port, timeout_s=5)
    end = WireEnd(wire, echo=False)
    rtt: Samples = {}
    for size in SIZES:
        rtt[str(size)] = []
        buffer = wire.pool.take(HEADER_BYTES + size)
        if kind == "tcp":  # the only wire that looks into the header, for the length
            pack_fields(buffer.view, Kind.DISPATCH, 0, size)
        end.buffer = buffer
        for _ in range(rounds(size)):
            start = time.perf_counter()
            end.arrived = asyncio.get_running_loop().create_future()
            wire.send(end.buffer, HEADER_BYTES + size)
            await end.arrived
            rtt[str(size)].append(time.perf_counter() - start)
    wire.close()
    return rtt, {}


def serve_socket() -> None:
    with socket.create_server((HOST, 0)) as listener:
        ready(listener.getsockname()[1])
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        memory = memoryview(bytearray(HEADER_BYTES + max(SIZES)))
        for size in SIZES:
            while receive_exactly(sock, memory[: HEADER_BYTES + size]) and memory[0] == 0:
                sock.sendall(memory[: HEADER_BYTES + size])


def receive_exactly(sock: socket.socket, into: memoryview) -> bool:
    while into:
        got = sock.recv_into(into)
        if got == 0:
            return False
        into = into[got:]
    return True


def ping_socket(port: int, rounds: Callable[[int], int]) -> tuple[Samples, Samples]:
    rtt: Samples = {}
    with socket.create_connection((HOST, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in SIZES:
            rtt[str(size)] = []
            memory = memoryview(bytearray(HEADER_BYTES + size))
            for _ in range(rounds(size)):
                start = time.perf_counter()
                sock.sendall(memory)
                receive_exactly(sock, memory)
                rtt[str(size)].append(time.perf_counter() - start)
            memory[0] = 1  # on to the next size
            sock.sendall(memory)
    return rtt, {}


def run_loop(main: Coroutine[Any, Any, Any], loop: str) -> Any:
    if loop == "uvloop":
        import uvloop

        return uvloop.run(main)
    return asyncio.run(main)


def serve(stack: str, loop: str) -> None:
    if stack == "socket":
        serve_socket()
        return
    layer, kind = stack.split("-")
    run_loop((serve_link if layer == "link" else serve_wire)(kind), loop)  # type: ignore[arg-type]


def measure(stack: str, loop: str, rounds: Callable[[int], int]) -> tuple[Samples, Samples]:
    command = [sys.executable, __file__, "--serve", stack, "--loop", loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            if stack == "socket":
                return ping_socket(port, rounds)
            layer, kind = stack.split("-")
            ping = ping_link if layer == "link" else ping_wire
            result: tuple[Samples, Samples] = run_loop(ping(kind, port, rounds), loop)  # type: ignore[arg-type]
            return result
        finally:
            child.kill()


def summary(samples: Samples) -> dict[str, dict[str, float]]:
    return {
        size: {
            "p50": round(statistics.median(values) * 1e6, 1),
            "p99": round(sorted(values)[int(len(values) * 0.99)] * 1e6, 1),
        }
        for size, values in samples.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400, help="round trips per size up to 64 KiB (a tenth above)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=STACKS)
    parser.add_argument("--serve", choices=STACKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if args.serve:
        serve(args.serve, args.loop)
        return
    load_before = os.getloadavg()[0]
    results = {
        stack: measure(stack, args.loop, lambda size: args.rounds if size <= 64 << 10 else max(20, args.rounds // 10))
        for stack in args.stacks
    }
    report = {
        "rtt_us": {stack: summary(rtt) for stack, (rtt, _) in results.items()},
        "post_us": {stack: summary(posted) for stack, (_, posted) in results.items() if posted},
        "conditions": {
            "rounds": args.rounds,
            "loop": args.loop,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "load_before": load_before,
            "load_after": os.getloadavg()[0],
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

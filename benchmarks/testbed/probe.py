"""One end of a measurement between two nodes, with plain blocking sockets. Runs inside a node; standard library only.

probe.py serve                                  prints its port, serves one client, ends
probe.py measure ADDRESS PORT ROUNDS SECONDS    prints JSON: rtt_us (every round), bytes and seconds of the transfer
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time

MESSAGE_BYTES = 64
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 10


def receive(sock: socket.socket, into: memoryview) -> int:
    """Fill ``into`` and return its size; less if the other end closes first."""
    got = 0
    while got < len(into):
        step = sock.recv_into(into[got:])
        if step == 0:
            break
        got += step
    return got


def prepared(sock: socket.socket) -> socket.socket:
    """Blocking calls with the kernel's own timeout: Python's costs a system call more on each."""
    sock.settimeout(None)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", TIMEOUT_S, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def serve() -> None:
    """Echo messages until one begins with 1; then swallow all that comes and say how much that was."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        print(listener.getsockname()[1], flush=True)
        sock, _ = listener.accept()
    with prepared(sock):
        message = memoryview(bytearray(MESSAGE_BYTES))
        while receive(sock, message) == MESSAGE_BYTES and message[0] == 0:
            sock.sendall(message)
        block = memoryview(bytearray(BLOCK_BYTES))
        total = 0
        while got := sock.recv_into(block):
            total += got
        sock.sendall(total.to_bytes(8, "big"))


def measure(address: str, port: int, rounds: int, seconds: float) -> dict[str, object]:
    with prepared(socket.create_connection((address, port), timeout=TIMEOUT_S)) as sock:
        message = memoryview(bytearray(MESSAGE_BYTES))
        rtt_us = []
        for _ in range(rounds):
            start = time.perf_counter()
            sock.sendall(message)
            receive(sock, message)
            rtt_us.append((time.perf_counter() - start) * 1e6)
        message[0] = 1
        sock.sendall(message)
        block = bytes(BLOCK_BYTES)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        total = memoryview(bytearray(8))
        receive(sock, total)
        return {
            "rtt_us": rtt_us,
            "bytes": int.from_bytes(total, "big"),
            "seconds": time.perf_counter() - start,
        }


def sink() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        print(sock.getsockname()[1], flush=True)
        while True:
            sock.recv(1 << 16)


def pace(address: str, port: int, per_s: int, seconds: float, nbytes: int) -> None:
    datagram = bytes(nbytes)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        start = time.perf_counter()
        for index in range(int(per_s * seconds)):
            while time.perf_counter() < start + index / per_s:
                pass
            sock.send(datagram)


def main(command: str, *arguments: str) -> None:
    match command, arguments:
        case "serve", ():
            serve()
        case "measure", (address, port, rounds, seconds):
            print(json.dumps(measure(address, int(port), int(rounds), float(seconds))))
        case "sink", ():
            sink()
        case "pace", (address, port, per_s, seconds, nbytes):
            pace(address, int(port), int(per_s), float(seconds), int(nbytes))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])

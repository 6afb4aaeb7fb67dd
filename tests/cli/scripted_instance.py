"""A process that behaves like an instance towards its launcher, in the way its name says; it serves nothing."""

from __future__ import annotations

import http.server
import json
import os
import signal
import sys
import threading
import time

from janus.runtime.parent import end_with_parent


def main() -> None:
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    name = options["--name"]
    print("log line of", name, file=sys.stderr, flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    end_with_parent(int(options["--parent-pid"]))
    if name.startswith("broken"):
        print("cannot find the model", file=sys.stderr, flush=True)
        sys.exit(3)
    if not name.startswith("silent"):
        secret = os.environ["JANUS_SECRET"]
        assert secret not in " ".join(sys.argv)
        port = int(options.get("--port", "1234"))
        line = {"event": "listening", "port": port, "ops_port": 5678}
        if name.startswith("gateway"):
            line["http_port"] = int(options["--http-port"])
            if "SCRIPTED_UNREADY" not in os.environ:
                line["ops_port"] = serve_ready(0)
        print("a stray line on stdout, threads:", os.environ["OMP_NUM_THREADS"], flush=True)
        print(json.dumps(line), flush=True)
    if name.startswith("stubborn"):
        signal.sigwait({signal.SIGUSR1})
    if name.startswith("patient"):
        while signal.sigwait({signal.SIGTERM, signal.SIGUSR1}) == signal.SIGTERM:
            print("told to stop", file=sys.stderr, flush=True)
        print("told again:", signal.SIGTERM in signal.sigpending(), file=sys.stderr, flush=True)
        return
    signal.sigwait({signal.SIGTERM})
    print("stopped at", time.monotonic_ns(), file=sys.stderr, flush=True)


class Ready(http.server.BaseHTTPRequestHandler):
    """Answers every GET with 200, as a gateway does whose cluster serves."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the log is the test's."""


def serve_ready(port: int) -> int:
    server = http.server.HTTPServer(("127.0.0.1", port), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


if __name__ == "__main__":
    main()

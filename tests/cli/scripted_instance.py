"""A process that behaves like an instance towards its launcher, in the way its name says; it serves nothing."""

from __future__ import annotations

import json
import os
import signal
import sys

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
        print("a stray line on stdout", flush=True)
        print(json.dumps({"event": "listening", "port": 1234, "ops_port": 5678, "argv": sys.argv}), flush=True)
    if name.startswith("stubborn"):
        signal.sigwait({signal.SIGUSR1})
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()

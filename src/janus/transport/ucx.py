"""UCX: its environment, and the engine that progresses it on an event loop.

The only module that imports ucxx, and it does so when the first engine is made.

The engine takes tagged messages by probing: the size is known *before* memory is given, an absurd message is refused
unread, UCX writes straight into a pooled, aligned buffer, and one probe serves all wires. Active messages would
allocate whatever size a stranger sends; the feature stays off, so UCX refuses them.

`benchmarks/transport/pingpong.py` measures round trips over it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import structlog

from janus.errors import ConfigError

log = structlog.get_logger(__name__)

#: The engine rests on ucxx's Cython layer, which changes between releases.
UCXX_SERIES = "0.52."

#: Set before ucxx is imported, unless the user has set them.
_ENVIRONMENT = {
    "UCX_MEMTYPE_CACHE": "n",  # ucxx sets it too, but so late that UCX warns about it
    "UCX_LOG_FILE": "stderr",  # UCX logs to stdout otherwise
    "UCXX_LOG_LEVEL": "FATAL",  # ucxx logs every refused connect to stdout otherwise
    "UCX_TCP_CM_REUSEADDR": "y",  # else a restarted server waits up to 60 s for its port
    "UCX_TCP_TX_SEG_SIZE": "1M",  # frames go in pieces of this size, each in one system call, not in pieces of 8K
    "UCX_TCP_RX_SEG_SIZE": "1M",
    # Below, frames go without asking the receiver first. To ask costs round trips between nodes; within a host a frame
    # that was not asked for costs a copy more than they do.
    "UCX_RNDV_THRESH": "intra:2M,inter:16M",
}

#: Names in ucxx's ``Feature``. Without AM, a stranger's active message cannot make this process allocate.
FEATURES = ("TAG", "STREAM", "WAKEUP")

#: Messages taken per turn of the pump, so that a busy peer cannot starve the rest of the loop.
_MESSAGES_PER_TURN = 64
#: The epoll descriptor has never missed an event in tests; this timer bounds the harm if it once does.
_SAFETY_PUMP_S = 0.1
#: How long memory stays untouched that UCX may still be writing to after a cancelled receive.
_QUARANTINE_S = 10.0

_import_lock = threading.Lock()


def prepare_environment() -> dict[str, str]:
    """Set UCX's variables where the user has not, and return those in force. Must run before ``import ucxx``."""
    return {name: os.environ.setdefault(name, value) for name, value in _ENVIRONMENT.items()}


def import_ucxx() -> Any:
    """Return the module ``ucxx`` with its Cython layer loaded.

    Raises:
        ConfigError: ucxx is missing, or of a release that this engine was not written for.
    """
    with _import_lock:
        prepare_environment()
        remedy = "install janus-moe[cpu] or [cu12], or choose --transport tcp"
        try:
            import ucxx
            import ucxx._lib.arr
            import ucxx._lib.libucxx
        except ImportError as error:
            raise ConfigError("transport", f"ucxx cannot be imported ({error})", remedy) from error
        if not str(ucxx.__version__).startswith(UCXX_SERIES):
            raise ConfigError("transport", f"ucxx {ucxx.__version__} found, {UCXX_SERIES}x is needed", remedy)
        return ucxx


def _spin_us() -> int:
    text = os.environ.get("JANUS_UCX_SPIN_US", "0")
    if not text.isdecimal() or int(text) > 100_000:
        raise ConfigError("JANUS_UCX_SPIN_US", f"{text!r} is no number of microseconds", "use 0 to 100000")
    return int(text)


class Receiver(Protocol):
    """What the engine needs of a wire."""

    def receive(self, probe: Any) -> bool:
        """Receive the message that ``probe`` announces; ``False`` if it is not welcome and to be dropped unread."""

    def endpoint_closed(self) -> None:
        """UCX has given the endpoint up; all that had arrived has been delivered."""

    def engine_failed(self, problem: str) -> None:
        """UCX itself has failed; nothing more will come."""


class Engine:
    """One UCX context and worker on one event loop, progressed when its epoll descriptor says so: idle costs nothing.

    With JANUS_UCX_SPIN_US it busy-polls that long before sleeping. That saves the wake-up where the process owns a
    core, and costs the whole window on a shared one; the default is 0.
    """

    _by_loop: ClassVar[dict[asyncio.AbstractEventLoop, Engine]] = {}
    _by_loop_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        lib = import_ucxx()._lib
        self.api = lib.libucxx
        self.array: Callable[[object], Any] = lib.arr.Array  # wraps memory for UCX
        self.loop = loop
        self.spin_s = _spin_us() * 1e-6
        features = tuple(self.api.Feature[name] for name in FEATURES)
        try:
            self.context = self.api.UCXContext({}, feature_flags=features)
            self.worker = self.api.UCXWorker(self.context)
            self.worker.init_blocking_progress_mode()
        except Exception as error:  # ucxx raises a family of unrelated classes
            remedy = "check the UCX_ variables of the environment (janus doctor shows what UCX finds)"
            raise ConfigError("transport", f"UCX cannot start: {error}", remedy) from error
        self.wires: dict[int, Receiver] = {}
        self._lost: list[Receiver] = []
        self._holders = 0
        self._any_tag, self._any_mask = self.api.UCXXTag(0), self.api.UCXXTagMask(0)
        # Requests in flight, with what to call when complete and the memory that must live until then.
        self._pending: list[tuple[Any, Callable[[Any], None], object]] = []
        self._quarantine: deque[tuple[float, object]] = deque()
        self._pump_due = False
        self._in_pump = False
        self._begun = False
        self._closed = False
        self._fd: int = self.worker.epoll_file_descriptor
        loop.add_reader(self._fd, self.pump)
        self._safety = loop.call_later(_SAFETY_PUMP_S, self._safety_pump)

    @classmethod
    def acquire(cls) -> Engine:
        """Return the running loop's engine, made on first use. Each holder calls ``release`` once."""
        loop = asyncio.get_running_loop()
        with cls._by_loop_lock:
            for stale in [known for known in cls._by_loop if known.is_closed()]:
                del cls._by_loop[stale]
            engine = cls._by_loop.get(loop)
            if engine is None:
                engine = cls._by_loop[loop] = cls(loop)
        engine.hold()
        return engine

    @classmethod
    def alive(cls) -> int:
        """Return how many engines there are in this process."""
        with cls._by_loop_lock:
            return len(cls._by_loop)

    def hold(self) -> None:
        """Keep the engine alive until ``release``."""
        self._holders += 1

    def release(self) -> None:
        """Give up one hold. With the last one the engine closes (soon: this may be called from within the pump)."""
        self._holders -= 1
        if self._holders == 0 and not self.loop.is_closed():
            self.loop.call_soon(self._close_if_unused)

    def _close_if_unused(self) -> None:
        with self._by_loop_lock:
            if self._holders or self._by_loop.get(self.loop) is not self:
                return
            del self._by_loop[self.loop]
        self._closed = True
        self._safety.cancel()
        self.worker.progress()
        self.loop.remove_reader(self._fd)
        self.worker.cancel_inflight_requests()
        self.worker.progress()
        # The worker goes first, then the memory that its requests were using.
        del self.worker, self.context
        self._pending.clear()
        self._quarantine.clear()

    def watch(self, request: Any, done: Callable[[Any], None], memory: object) -> None:
        """Call ``done(request)`` from the pump once the request is complete; hold ``memory`` until then."""
        self._pending.append((request, done, memory))
        self._begun = True
        self.kick()

    def quarantine(self, *memory: object) -> None:
        """Keep memory that a failed request may still be using."""
        self._quarantine.append((self.loop.time() + _QUARANTINE_S, memory))

    def endpoint_lost(self, wire: Receiver) -> None:
        """Note that UCX has given up ``wire``'s endpoint. UCX calls this from within progress()."""
        self._lost.append(wire)

    def kick(self) -> None:
        """See to it that the pump runs soon, unless it is running."""
        if not self._pump_due and not self._in_pump:
            self._pump_due = True
            self.loop.call_soon(self._kicked)

    def _kicked(self) -> None:
        self._pump_due = False
        self.pump()

    def _safety_pump(self) -> None:
        self._safety = self.loop.call_later(_SAFETY_PUMP_S, self._safety_pump)
        while self._quarantine and self._quarantine[0][0] < self.loop.time():
            self._quarantine.popleft()
        self.pump()

    def pump(self) -> None:
        """Progress UCX until there is nothing left to do and its wakeup is armed."""
        if self._in_pump or self._closed:
            return
        self._in_pump = True
        try:
            armed = self._progress()
        except Exception as error:
            # Nothing that a peer does leads here, and to try again would fail again at once, for ever.
            log.exception("ucx_engine_failed", links=len(self.wires))
            self._fail(str(error))
            return
        finally:
            self._in_pump = False
        if not armed:
            self.kick()

    def _progress(self) -> bool:
        """Return whether UCX will wake us; if not, there is more to do and others shall have their turn first."""
        spin_until = time.perf_counter() + self.spin_s if self.spin_s else 0.0
        budget = _MESSAGES_PER_TURN
        while budget > 0:
            self._begun = False
            self.worker.progress()
            done = taken = self._take_messages()
            if self._pending:
                done += self._complete_requests()
            if self._lost and taken < _MESSAGES_PER_TURN:  # else there may be more of what a lost endpoint has brought
                done += self._drop_lost()
            budget -= done
            if self.spin_s:
                now = time.perf_counter()
                if done:
                    spin_until = now + self.spin_s
                if now < spin_until:
                    continue
            # What was begun meanwhile wants progress. What arrives meanwhile wakes us; to look for it once more costs
            # an exchange of short messages 1.5 us of 29.
            if not self._begun and taken < _MESSAGES_PER_TURN and self.worker.arm():
                return True
        return False

    def _fail(self, problem: str) -> None:
        """Lose every wire; the next user of this loop gets a new engine."""
        self._closed = True
        self.loop.remove_reader(self._fd)
        self._safety.cancel()
        with self._by_loop_lock:
            del self._by_loop[self.loop]
        for wire in list(self.wires.values()):
            wire.engine_failed(problem)

    def _take_messages(self) -> int:
        """Start receiving every message that has arrived; return how many there were."""
        tag_probe, tag, mask, wires = self.worker.tag_probe, self._any_tag, self._any_mask, self.wires
        for count in range(_MESSAGES_PER_TURN):
            probe = tag_probe(tag, mask, True)
            if not probe.matched:
                return count
            wire = wires.get(probe.sender_tag)
            if wire is None or not wire.receive(probe):
                self._discard(probe)
        return _MESSAGES_PER_TURN

    def _discard(self, probe: Any) -> None:
        """Take a message off UCX's hands without reading it: one byte is received, the rest is cut off."""
        memory = bytearray(1)
        request = self.worker.tag_recv_with_handle(self.array(memory), probe)
        if not request.completed:
            self.quarantine(request, memory)

    def _complete_requests(self) -> int:
        finished = [entry for entry in self._pending if entry[0].completed]
        if finished:
            # Requests complete only within progress(), so both looks at .completed agree.
            self._pending = [entry for entry in self._pending if not entry[0].completed]
            for request, done, _ in finished:
                done(request)
        return len(finished)

    def _drop_lost(self) -> int:
        lost, self._lost = self._lost, []
        for wire in lost:
            wire.endpoint_closed()
        return len(lost)

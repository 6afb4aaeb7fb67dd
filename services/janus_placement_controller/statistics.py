"""The controller's memory of what the router chose: fed by the instances, kept on disk over restarts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from janus.core.activations import DEFAULT_TOKENS, ActivationWindow
from janus.core.placing.contract import Activity
from janus.core.trace import Trace
from janus.errors import TraceError
from janus.messages.control import RoutingSample

log = structlog.get_logger()

#: How often the rate at which samples arrive is measured anew.
_MEASURE_EVERY_S = 5.0
_SAVE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedModel:
    """The model whose routing is counted."""

    fingerprint: str
    num_layers: int
    num_experts: int
    top_k: int


class Statistics:
    """The window, its file and its metrics. On the control loop only."""

    def __init__(
        self,
        model: RoutedModel,
        registry: CollectorRegistry,
        *,
        state_dir: str = "",
        max_age_s: float = 0.0,
        horizon_s: float = 60.0,
        prior: npt.NDArray[np.float64] | None = None,
        tokens: int = DEFAULT_TOKENS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        state_dir: where the window is kept; empty forgets it at the end.
        max_age_s: an older file is not restored; 0 = however old.
        horizon_s: the window reaches back at least so far, however many instances sample: a placement is for minutes,
            not for a second.
        prior: float[L, E], counts that stand in for what has not been sampled yet.
        clock: seconds since 1970.
        """
        self.model = model
        file = f"activations-{model.fingerprint[:16]}.safetensors"
        self._path = Path(state_dir).expanduser() / file if state_dir else None
        self._max_age_s = max_age_s
        self._horizon_s = horizon_s
        self._clock = clock
        self._window = ActivationWindow(model.num_layers, model.num_experts, model.top_k, tokens=tokens, prior=prior)
        #: When the newest token of the window was added; 0 for none.
        self._newest = 0.0
        self._saved = 0
        #: Share of the sampled tokens that is taken in, and what it is measured from.
        self._share = 1.0
        self._measured_from = clock()
        self._arrived = 0
        self._sampled = Counter("janus_routing_sampled_tokens", "Tokens whose routing was sampled", registry=registry)
        self._refused = Counter("janus_routing_samples_refused", "Samples that were malformed", registry=registry)
        self._size = Gauge("janus_routing_window_tokens", "Sampled tokens in the window", registry=registry)
        self._age = Gauge("janus_routing_window_age_seconds", "Since the newest sampled token", registry=registry)

    # -- in --------------------------------------------------------------------------------------------------------

    def on_sample(self, peer: str, sample: RoutingSample) -> None:
        """Take what ``peer`` sampled; what is malformed is counted and logged."""
        now = self._clock()
        self._measure(now, sample.tokens)
        # A window that is not full is filled as fast as can be.
        share = self._share if len(self._window) == self._window.capacity else 1.0
        try:
            taken = self._window.add(sample, share=share)
        except ValueError as error:
            self._refused.inc()
            log.warning("sample_refused", peer=peer, problem=str(error))
            return
        self._sampled.inc(sample.tokens)
        if taken:
            self._newest = now

    def load(self, trace: Trace) -> None:
        """Add the tokens of a trace, as if they had just been sampled.

        Raises:
            TraceError: it is of another model.
        """
        model = self.model
        trace.check_model(
            fingerprint=model.fingerprint,
            num_layers=model.num_layers,
            num_experts=model.num_experts,
            top_k=model.top_k,
        )
        self._window.add_trace(trace)
        self._newest = self._clock()

    # -- out -------------------------------------------------------------------------------------------------------

    def activity(self) -> Activity | None:
        """What the router chose lately; ``None`` while nothing is known. Up to 0.1 s for the largest models."""
        return self._window.activity()

    def trace(self) -> Trace:
        """The sampled tokens."""
        return self._window.trace(fingerprint=self.model.fingerprint, saved_at=self._newest)

    def status(self) -> dict[str, object]:
        """What ``/status`` shows."""
        return {
            "window_tokens": len(self._window),
            "window_capacity": self._window.capacity,
            "sampled_tokens": self._window.added,
            "age_s": round(self._clock() - self._newest, 1) if self._newest else None,
            "share": round(self._share, 4),
        }

    def refresh(self) -> None:
        """Bring the gauges up to date."""
        self._size.set(len(self._window))
        self._age.set(self._clock() - self._newest if self._newest else 0.0)

    # -- on disk ---------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Begin with what an earlier controller saved; a file that is too old or damaged is left out, and said so."""
        if self._path is None:
            return
        try:
            trace = Trace.from_bytes(self._path.read_bytes())
            age_s = self._clock() - trace.saved_at
            if self._max_age_s and age_s > self._max_age_s:
                log.info("activations_too_old", path=str(self._path), age_s=round(age_s), limit_s=self._max_age_s)
                return
            self.load(trace)
        except FileNotFoundError:
            return
        except (OSError, TraceError) as error:
            log.warning("activations_not_restored", path=str(self._path), problem=str(error))
            return
        self._newest, self._saved = trace.saved_at, self._window.added
        log.info("activations_restored", tokens=trace.tokens, age_s=round(age_s, 1))

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Save the window every now and then, and at the end."""
        if self._path is None:
            yield
            return
        stop = asyncio.Event()
        saving = asyncio.create_task(self._save_regularly(self._path, stop), name="save-activations")
        try:
            yield
        finally:
            stop.set()
            # Not cancelled: a file that is being written in its thread is written to the end, and then once more.
            await saving

    async def _save_regularly(self, path: Path, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._save(path)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SAVE_EVERY_S):
                    await stop.wait()
        await self._save(path)

    async def _save(self, path: Path) -> None:
        if self._window.added == self._saved:
            return
        added, trace = self._window.added, self.trace()
        try:
            await asyncio.to_thread(_write, path, trace)
        except OSError as error:
            log.warning("activations_not_saved", path=str(path), problem=str(error))
        else:
            self._saved = added

    def _measure(self, now: float, tokens: int) -> None:
        self._arrived += max(0, tokens)
        elapsed = now - self._measured_from
        if not 0 <= elapsed < _MEASURE_EVERY_S:
            wanted = self._window.capacity / self._horizon_s
            self._share = min(1.0, wanted * elapsed / self._arrived) if self._arrived and elapsed > 0 else 1.0
            self._measured_from, self._arrived = now, 0


def _write(path: Path, trace: Trace) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.part")
    part.touch(mode=0o600)
    part.write_bytes(trace.to_bytes())
    part.replace(path)

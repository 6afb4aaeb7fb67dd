"""Looks for a better placement now and then, beside the loop, and proposes it where it is worth the move."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from janus.config.options import ControllerOptions
from janus.core.membership import Membership
from janus.core.membership_events import Event, TargetProposed
from janus.core.placing import POLICIES
from janus.core.placing.contract import Activity, Held, PlacingRequest
from janus.core.placing.moves import Verdict, worth_moving
from janus.core.planning.widths import WIDTHS
from janus.model.checkpoint import Checkpoint

log = structlog.get_logger()

#: Of an instance that does not say.
_DEFAULT_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaBytes:
    """What one expert of one layer takes."""

    parameters: int
    #: In the checkpoint, in whatever form it is stored; the mean over the layers.
    stored: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ReplicaBytes:
        """Return that of ``checkpoint``, from its tensors."""
        layers = checkpoint.config.moe_layers
        stored = sum(checkpoint.expert_nbytes(layer, 0) for layer in layers) // len(layers)
        return cls(parameters=checkpoint.config.expert_parameters, stored=stored)

    def held(self, dtype: str) -> int:
        """Return the bytes in the memory of an instance that serves in ``dtype``: what another one would send it."""
        return int(self.parameters * WIDTHS[dtype or _DEFAULT_DTYPE])


class Rebalancer:
    """Belongs to the controller's loop; the policy itself runs in another thread, as it may take a second."""

    def __init__(
        self,
        membership: Membership,
        options: ControllerOptions,
        *,
        replica: ReplicaBytes,
        dtype: Callable[[], str],
        activity: Callable[[], Activity | None],
        apply: Callable[[Event], None],
    ) -> None:
        """``dtype``: what the cluster serves in; ``activity``: what the router chose lately; ``apply``: proposes.

        A move is judged by the bytes that it fills in memory, whether they come from the checkpoint or from others: the
        rate that hosts load at is counted in these. What they are in the checkpoint is reported beside it.
        """
        self._membership = membership
        self._policy = POLICIES[options.placement]
        self._interval_s = options.rebalance_s
        self._least_gain = options.rebalance_gain
        self._replica = replica
        self._dtype = dtype
        self._activity = activity
        self._apply = apply
        #: The last look, for ``/status``.
        self.last: dict[str, object] = {}

    async def run(self) -> None:
        """Look every ``rebalance_s`` until cancelled; at once never."""
        while self._interval_s:
            await asyncio.sleep(self._interval_s)
            await self.look()

    async def look(self) -> None:
        """Ask the policy once, and propose its answer if it is worth the move."""
        activity = self._activity()
        if activity is None:
            return
        self._membership.use_activity(activity)
        request = self._membership.placing_request()
        if request is None:
            return
        started = time.monotonic()
        try:
            held, verdict = await asyncio.to_thread(self._think, request, activity, self._membership.batch())
        except Exception as error:
            # A look that fails costs nothing but itself; whoever watches must know that there is none.
            log.exception("rebalance_failed", problem=str(error))
            self.last = {"problem": f"{type(error).__name__}: {error}"}
            return
        self.last = {
            "moved": verdict.move,
            "reason": verdict.reason,
            "a_max_before": round(verdict.a_max_before, 3),
            "a_max_after": round(verdict.a_max_after, 3),
            "loads": sum(verdict.loads.values()),
            "bytes": verdict.bytes,
            "stored_bytes": sum(verdict.loads.values()) * self._replica.stored,
            "seconds": round(time.monotonic() - started, 3),
        }
        log.info("placement_judged", **self.last)
        if verdict.move:
            a_max = (verdict.a_max_before, verdict.a_max_after)
            self._apply(TargetProposed(request=request, held=held, a_max=a_max, now=time.monotonic()))

    def _think(self, request: PlacingRequest, activity: Activity, batch: int) -> tuple[Held, Verdict]:
        held = self._policy(request)
        verdict = worth_moving(
            request,
            held,
            activity,
            bytes_per_expert=self._replica.held(self._dtype()),
            batch=batch,
            least_gain=self._least_gain,
        )
        return held, verdict

"""The batcher that serves, with a way to skip what is the same every time: steps that only decode.

Between two arrivals an attention instance computes hundreds of steps, each of which is one token for every running
request. ``steady_steps`` says for how many steps from now nothing else can happen, ``run_steady`` has the effect of so
many calls of ``plan`` and ``step_done``. A property test holds one against the other.
"""

from __future__ import annotations

from janus.core.batcher import Action, Batcher, BatcherConfig, Emit
from janus.core.kv import KvTable
from janus.messages.control import TokenDelta

#: Steps that are skipped at once, at most.
MOST = 4096


class SteadyBatcher(Batcher):
    """``Batcher`` for a simulator: nothing is sampled, a token is the number of its place in the output."""

    def __init__(self, config: BatcherConfig) -> None:
        super().__init__(config)
        self._table: KvTable = self._kv

    def steady_steps(self) -> int:
        """Return for how many steps from now each only decodes one token of every running request.

        No request starts, ends, or is preempted in any of them. At least so many; 0 when the next step may differ.
        """
        running = self._running
        if not running or self._in_flight or len(running) > self.config.token_budget:
            return 0
        least = MOST
        for request in running:
            if request.step_id or not request.decodes or request.stop_ids:
                return 0
            if not request.output_ids:
                return 0  # the last token of its prompt is left: the first of its answer is news on its own
            least = min(least, request.max_total - len(request.tokens))
        # The step that brings the last token ends a request.
        least -= 1
        if self._waiting and self._table.would_admit(self._waiting[0], spare=len(running)):
            return 0
        # Each request may need a block at once, and one more per block of steps.
        blocks = self._table.num_free // len(running)
        return max(0, min(least, (blocks - 1) * self.config.block_size))

    @property
    def context_tokens(self) -> int:
        """Tokens of context of all running requests together."""
        return sum(len(request.tokens) for request in self._running)

    def run_steady(self, steps: int) -> list[Action]:
        """Compute ``steps`` steps, at most ``steady_steps()`` of them; only which block is whose may differ.

        One ``Emit`` per request has the tokens of all of them.
        """
        actions: list[Action] = []
        if not steps:
            return actions
        self._steps += steps
        self._failed_in_a_row = 0
        self._failing_since = None
        size, grow = self.config.block_size, self._table.grow
        for request in self._running:
            request.last_step = self._steps
            request.failing_since = None
            request.computed += steps
            for _ in range(-(-(request.computed - request.capacity) // size)):
                grow(request)
            index = len(request.output_ids)
            token_ids = list(range(index, index + steps))
            request.tokens += token_ids
            request.output_ids += token_ids
            actions.append(Emit(TokenDelta(request_id=request.request_id, index=index, token_ids=token_ids)))
        return actions

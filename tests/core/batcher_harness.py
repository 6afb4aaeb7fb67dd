"""A model in ten lines behind a real paged KV memory: it notices every token that a plan puts in the wrong place."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from janus.core.batcher import Action, Batcher, BatcherConfig, Emit, Finish, StepPlan
from janus.messages.control import FinishReason, SamplingParams, Submit

EOS = 0
VOCAB = 13


def config(**changes: int) -> BatcherConfig:
    values = {
        "max_running": 4,
        "token_budget": 8,
        "block_size": 4,
        "num_blocks": 16,
        "max_model_len": 32,
        "max_waiting": 8,
        **changes,
    }
    return BatcherConfig(**values)


def submit(request_id: str, prompt: list[int], *, emitted: list[int] | None = None, **params: object) -> Submit:
    return Submit(
        request_id=request_id,
        prompt_ids=prompt,
        params=SamplingParams(**params),  # type: ignore[arg-type]
        emitted_ids=emitted or [],
    )


def next_token(history: list[int], suppressed: frozenset[int]) -> int:
    """The model: the next token depends on all tokens before it, in order."""
    state = 7
    for token in history:
        state = (state * 31 + token + 1) % 1009
    while state % VOCAB in suppressed:
        state += 1
    return state % VOCAB


def reference(request: Submit, max_model_len: int) -> tuple[list[int], FinishReason]:
    """What the request must yield, computed one token after the other and without any batcher."""
    params, output = request.params, list(request.emitted_ids)
    stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset({EOS}))
    while True:
        if len(output) >= params.max_tokens or len(request.prompt_ids) + len(output) >= max_model_len:
            return output, "length"
        token = next_token([*request.prompt_ids, *output], stops if len(output) < params.min_tokens else frozenset())
        if token in stops and len(output) >= params.min_tokens:
            return output, "stop"
        output.append(token)


class FakeModel:
    """Runs plans. ``memory[slot]`` is the token whose keys and values are there; attention reads it back."""

    def __init__(self, limits: BatcherConfig) -> None:
        self.limits = limits
        self.memory = np.full(limits.num_blocks * limits.block_size, -1, dtype=np.int64)

    def run(self, plan: StepPlan) -> list[int]:
        size = self.limits.block_size
        check_shapes(plan, self.limits)
        self.memory[plan.slot_mapping] = plan.token_ids
        histories: dict[int, list[int]] = {}
        for index in range(len(plan.chunks)):
            positions = np.arange(plan.context_len[index])
            slots = plan.block_tables[index][positions // size] * size + positions % size
            histories[int(plan.query_start[index + 1]) - 1] = self.memory[slots].tolist()
        sampled = []
        for row, view in zip(plan.sample_rows.tolist(), plan.sampling, strict=True):
            assert histories[row] == [*view.prompt_ids, *view.output_ids]
            sampled.append(next_token(histories[row], view.suppressed_ids))
        return sampled

    def spoil(self, plan: StepPlan) -> None:
        """What a step that fails half-way may leave behind."""
        self.memory[plan.slot_mapping] = -9


def check_shapes(plan: StepPlan, limits: BatcherConfig) -> None:
    lengths = [len(chunk.token_ids) for chunk in plan.chunks]
    tokens, chunks = sum(lengths), len(lengths)
    assert 0 < tokens <= limits.token_budget
    assert min(lengths) > 0
    assert all(length == 1 for length in lengths[: plan.num_decode])
    assert plan.token_ids.tolist() == [token for chunk in plan.chunks for token in chunk.token_ids]
    assert plan.positions.tolist() == [c.start + i for c in plan.chunks for i in range(len(c.token_ids))]
    assert plan.query_start.tolist() == np.cumsum([0, *lengths]).tolist()
    assert plan.context_len.tolist() == [c.start + len(c.token_ids) for c in plan.chunks]
    assert len(set(plan.slot_mapping.tolist())) == tokens
    assert plan.block_tables.shape[0] == chunks
    for index, chunk in enumerate(plan.chunks):
        used = -(-int(plan.context_len[index]) // limits.block_size)
        assert tuple(plan.block_tables[index, :used].tolist()) == chunk.block_table[:used]
    ends = [int(end) - 1 for end, chunk in zip(plan.query_start[1:], plan.chunks, strict=True) if chunk.sample]
    assert plan.sample_rows.tolist() == ends
    assert len(plan.sampling) == len(ends)
    names = (plan.token_ids, plan.positions, plan.slot_mapping, plan.sample_rows)
    assert [array.dtype for array in names] == [np.dtype(np.int64)] * 4
    small = (plan.query_start, plan.context_len, plan.block_tables)
    assert [array.dtype for array in small] == [np.dtype(np.int32)] * 3


@dataclass
class Client:
    """Reads actions as the gateway would, and refuses any that break the protocol."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, Finish] = field(default_factory=dict)

    def expect(self, request: Submit) -> None:
        self.tokens[request.request_id] = list(request.emitted_ids)

    def read(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Emit):
                delta = action.delta
                assert delta.request_id not in self.finished
                assert delta.index == len(self.tokens[delta.request_id])
                self.tokens[delta.request_id] += delta.token_ids
            elif isinstance(action, Finish):
                assert action.request_id not in self.finished
                self.finished[action.request_id] = action


def run_to_end(batcher: Batcher, model: FakeModel, client: Client, *, limit: int = 2000) -> int:
    """Step until nothing is left; return the number of steps."""
    for steps in range(limit):
        plan = batcher.plan(0.0)
        if plan is None:
            assert not batcher.has_requests
            return steps
        client.read(batcher.step_done(plan, model.run(plan)))
        batcher.check()
    raise AssertionError(f"requests are left after {limit} steps")

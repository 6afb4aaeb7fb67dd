"""What an expert instance computes next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from janus.core.expert_queue import LayerQueues


def queues(max_dispatches: int = 100, max_rows: int = 1000) -> LayerQueues[str]:
    return LayerQueues(max_dispatches=max_dispatches, max_rows_together=max_rows)


def test_everything_that_waits_for_a_layer_is_taken_together_oldest_layer_first() -> None:
    q = queues()
    for name, layer in (("a", 3), ("b", 1), ("c", 3), ("d", 1)):
        assert q.put(layer, name, 10)
    assert [q.take(), q.take(), q.take()] == [(3, ["a", "c"]), (1, ["b", "d"]), None]


def test_a_layer_over_the_row_limit_goes_to_the_back_with_its_rest() -> None:
    q = queues(max_rows=25)
    for name, layer in (("a", 0), ("b", 0), ("c", 0), ("d", 1)):
        q.put(layer, name, 10)
    assert [q.take(), q.take(), q.take()] == [(0, ["a", "b"]), (1, ["d"]), (0, ["c"])]


def test_one_dispatch_over_the_limit_is_still_taken() -> None:
    q = queues(max_rows=5)
    q.put(0, "huge", 50)
    assert q.take() == (0, ["huge"])


def test_the_bound_refuses_and_loses_nothing() -> None:
    q = queues(max_dispatches=2)
    assert [q.put(0, "a", 1), q.put(1, "b", 1), q.put(0, "c", 1)] == [True, True, False]
    assert (len(q), q.clear(), len(q)) == (2, ["a", "b"], 0)


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 4), st.integers(1, 9)))))
def test_every_dispatch_is_taken_once_in_order_within_its_layer(script: list[tuple[int, int] | None]) -> None:
    q: LayerQueues[tuple[int, int]] = LayerQueues(max_dispatches=1000, max_rows_together=12)
    put: list[tuple[int, int]] = []
    taken: list[tuple[int, int]] = []
    for number, step in enumerate([*script, *[None] * len(script)]):
        if step is None:
            turn = q.take()
            taken += turn[1] if turn else []
        else:
            q.put(step[0], (step[0], number), step[1])
            put.append((step[0], number))
        assert len(q) == len(put) - len(taken)
    assert sorted(taken) == sorted(put)
    for layer in range(5):
        assert [d for d in taken if d[0] == layer] == [d for d in put if d[0] == layer]

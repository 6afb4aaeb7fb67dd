"""The servers run on uvloop, the other tests on asyncio's own loop: the heart of the contract again, there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

import pytest
import uvloop

from janus.transport import TransportKind
from tests.transport import test_contract, test_growth, test_hostile, test_shm
from tests.transport.helpers import needs_shared_memory

CHECKS = (
    test_contract.test_every_size_arrives_whole_in_order_and_aligned,
    test_contract.test_a_thousand_random_frames_each_way_at_once,
    test_contract.test_a_peer_that_does_not_consume_stops_the_sender_and_recovery_is_complete,
    test_contract.test_abort_ends_waits_and_is_noticed_by_the_peer,
    test_contract.test_both_sides_may_close_at_once_and_twice,
    test_hostile.test_connect_to_nobody_is_named_soon,
    test_hostile.test_a_cancelled_connect_leaves_nothing_behind,
    test_growth.test_nothing_grows_over_a_hundred_connections,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_on_uvloop(kind: TransportKind, check: Callable[[TransportKind], Coroutine[None, None, None]]) -> None:
    uvloop.run(check(kind))


SHARED_MEMORY = (
    test_shm.test_order_is_kept_when_the_kernel_takes_no_more_for_a_while,
    test_shm.test_exhausted_memory_ends_the_link_by_name_and_no_other,
    test_shm.test_two_hundred_peers_later_nothing_is_left_of_them,
)


@needs_shared_memory
@pytest.mark.parametrize("check", SHARED_MEMORY, ids=lambda check: check.__name__.removeprefix("test_"))
def test_shared_memory_on_uvloop(check: Callable[[], Coroutine[None, None, None]]) -> None:
    uvloop.run(check())

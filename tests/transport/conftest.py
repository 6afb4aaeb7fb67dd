"""Fixtures of the transport tests."""

from __future__ import annotations

import pytest

from janus.transport import TRANSPORT_KINDS, TransportKind
from tests.transport.helpers import needs_shared_memory


@pytest.fixture(params=[pytest.param(kind, marks=[needs_shared_memory] * (kind == "shm")) for kind in TRANSPORT_KINDS])
def kind(request: pytest.FixtureRequest) -> TransportKind:
    """Every transport in turn: what a link promises, it promises over all of them."""
    found: TransportKind = request.param
    return found

"""Fixtures of the transport tests."""

from __future__ import annotations

import pytest

from janus.transport import TRANSPORT_KINDS, TransportKind


@pytest.fixture(params=TRANSPORT_KINDS)
def kind(request: pytest.FixtureRequest) -> TransportKind:
    """Every transport in turn: what a link promises, it promises over all of them."""
    found: TransportKind = request.param
    return found

"""Two clusters that the short scenarios share: one on which every expert has replicas, one that must load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.shared import SharedClusters


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedClusters]:
    """``janus up`` for the needs of a scenario, started when first asked for; no process outlives the module."""
    shared = SharedClusters(tmp_path_factory.mktemp("chaos"))
    with pytest.MonkeyPatch.context() as patch:
        # Whoever looks for a cluster by name finds those of this test alone.
        patch.setenv("XDG_RUNTIME_DIR", str(shared.directory))
        yield shared
        problems = shared.close()
    assert not problems

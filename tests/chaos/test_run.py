"""What a run makes of its steps."""

from __future__ import annotations

import pytest

from janus.chaos.run import _struck_at
from janus.chaos.steps import Done


@pytest.mark.parametrize(("do", "moment"), [("kill", 1.5), ("stop", 1.0), ("cut", 1.0), ("scale", 1.0)])
def test_a_killed_process_takes_requests_until_it_has_ended(do: str, moment: float) -> None:
    later = Done(do="kill", target="expert-1", at=2.0, over=2.1)
    first = Done(do=do, target="expert-0", at=1.0, over=1.5)
    assert _struck_at([later, first]) == moment

"""A testbed of several nodes on one machine; see docs/testbed.md."""

from benchmarks.testbed.bed import Testbed
from benchmarks.testbed.spec import LinkSpec, LinkTraffic, Measured, TestbedError, TestbedUnavailable
from benchmarks.testbed.support import unavailable

__all__ = ["LinkSpec", "LinkTraffic", "Measured", "Testbed", "TestbedError", "TestbedUnavailable", "unavailable"]

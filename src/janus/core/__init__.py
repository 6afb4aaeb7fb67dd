"""Decisions as pure code: state machines and functions without asyncio, clock, device or I/O.

Every function is deterministic in its arguments, and time comes in as ``now`` (seconds of any monotonic clock), so that
the services, the tests and the simulator drive the very same code.
"""

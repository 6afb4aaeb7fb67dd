"""What the placement-controller knows of the cluster, and a sentence about what is not as it should be."""

from __future__ import annotations

import httpx
import msgspec

from janus.messages.control import StatusReport


async def fetch_status(ops_url: str, *, timeout_s: float = 2.0) -> StatusReport:
    """Return the controller's report.

    Raises:
        httpx.HTTPError: it does not answer.
        ValueError: it answers something else.
    """
    # To load the certificates of the machine takes 20 ms of CPU, and janus up asks every second.
    encrypted = ops_url.startswith("https:")
    async with httpx.AsyncClient(timeout=timeout_s, trust_env=False, verify=encrypted) as client:
        response = await client.get(f"{ops_url}/status")
        response.raise_for_status()
        known = {field.encode_name for field in msgspec.structs.fields(StatusReport)} | {"type"}
        return msgspec.convert({key: value for key, value in response.json().items() if key in known}, StatusReport)


def problems(report: StatusReport) -> list[str]:
    """Return what keeps the cluster from being as it should be, instance by instance; empty when all is well."""
    found = [f"{name} has not registered" for name in report.view.missing]
    for member in report.view.members:
        heartbeat = report.heartbeats.get(member.instance)
        if heartbeat is None:
            if member.role != "controller":
                found.append(f"{member.instance} has not reported yet")
            continue
        if member.state != "ready" or heartbeat.reason:
            found.append(f"{member.instance} is {member.state}" + (f": {heartbeat.reason}" if heartbeat.reason else ""))
        if heartbeat.unreachable:
            found.append(f"{member.instance} cannot reach {', '.join(heartbeat.unreachable)}")
    return [*found, *(reason for reason in report.degraded if reason not in found)]


def what_is_missing(report: StatusReport) -> str:
    """Return ``problems`` as one line, for progress and for errors."""
    found = problems(report)
    if not found:
        return "every instance is registered; the gateway is not ready yet"
    return "; ".join(found)

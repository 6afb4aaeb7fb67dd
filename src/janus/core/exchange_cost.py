"""What each way to exchange should take: a cost model. Pure.

A message costs ``message_s`` at each of its ends, where messages queue up one after the other, ``latency_s`` on its way
and ``byte_s`` per byte, which all members of a node share. What the model leaves out (other load, the cores that
processes share) is measured: ``janus.core.exchange_trials`` compares the ways where they are in use.
"""

from __future__ import annotations

from dataclasses import dataclass

from janus.core.exchange_routes import Mode, gathers


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCost:
    """What a message costs on one kind of link."""

    #: At the sender, and again at the receiver; messages of one instance queue for it. Seconds.
    message_s: float
    #: Between the two. Seconds.
    latency_s: float
    #: Seconds per byte.
    byte_s: float

    def one_way_s(self, nbytes: float = 0) -> float:
        """Return the time of one message of ``nbytes`` when nothing else is on its way."""
        return 2 * self.message_s + self.latency_s + nbytes * self.byte_s


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchShape:
    """A dispatch as the model sees it. Instances and nodes without a row do not count."""

    #: Destination instances, and bytes to all of them, and what comes back.
    instances: int
    instance_bytes: int
    instance_answer_bytes: int
    #: Destination nodes, likewise.
    nodes: int
    node_bytes: int
    node_answer_bytes: int
    #: Bytes of the whole batch's activations.
    batch_bytes: int
    #: Most destination instances on one node.
    largest_node: int
    #: Attention instances: of this node that dispatch too, and in all.
    members: int
    sources: int


def predict(mode: Mode, shape: DispatchShape, *, inter: LinkCost, intra: LinkCost) -> float:
    """Return the seconds from dispatch to combine that ``mode`` is predicted to take, the experts' work left out.

    Everyone who shares a layer dispatches at about the same time; there and back are alike but for the bytes. Nothing
    here branches on the shape's numbers, so these, and the seconds per byte, may be arrays: plans ask for thousands.
    """
    m, sources = shape.members, shape.sources
    source_nodes = -(-sources // m)
    if mode == "direct":
        wire = shape.instances + sources  # at the sender one after the other, then at the receiver
        nbytes = m * (shape.instance_bytes + shape.instance_answer_bytes)
        return 2 * (wire * inter.message_s + inter.latency_s) + nbytes * inter.byte_s
    posts = shape.instances if mode == "aggregated" else shape.nodes
    there = shape.instance_bytes if mode == "aggregated" else shape.node_bytes
    back = shape.instance_answer_bytes if mode == "aggregated" else shape.node_answer_bytes
    gathered = gathers(mode, members=m, batch_bytes=shape.batch_bytes)
    senders = sources - gathered * (sources - source_nodes)
    seconds = 2 * ((posts + senders) * inter.message_s + inter.latency_s) + m * (there + back) * inter.byte_s
    # Everybody's rows to the leader, and everybody's sums back: one message each way per other member.
    gathering = 2 * (m * intra.message_s + intra.latency_s) + 2 * m * shape.batch_bytes * intra.byte_s
    seconds += gathered * gathering
    if mode == "two-phase":
        siblings = shape.largest_node - 1
        # The relay forwards by reference; the partial sums come back as bytes.
        relaying = 2 * ((siblings + 1) * senders * intra.message_s + intra.latency_s)
        relaying += siblings * m * (shape.node_answer_bytes / (shape.nodes + (shape.nodes == 0))) * intra.byte_s
        seconds += (siblings > 0) * relaying
    return seconds

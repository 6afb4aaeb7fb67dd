"""Which way to exchange: a cost model of the three, corrected by what they took. Pure.

A message costs ``message_s`` at each of its ends, where messages queue up one after the other, ``latency_s`` on its way
and ``byte_s`` per byte, which all members of a node share. What the model leaves out (other load, the cores that
processes share) is the same within a way and a size, so a factor per way and size, learned from live timings, puts
it right. The way that is not in use is tried again now and then, rarer and rarer, since its factor would never move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from janus.core.exchange_routes import Mode, gathers

#: A factor starts as the median of so many timings; from then on the newest one has this weight.
_FIRST = 8
_NEWEST = 1 / 16
#: A way that was never taken is looked at soon, and shortly: a large dispatch takes long, and there are few of them.
_LOOK = 4
_LOOK_AFTER = 8
#: Dispatches in a row that try another way again, and after how many of the usual way they first do.
_TRIAL = 4
_FIRST_TRIAL_AFTER = 64
_LONGEST_TRIAL_AFTER = 4096
#: A way that is predicted to take so many times as long is not worth a trial.
_HOPELESS = 3.0
#: A way must be this much better to take over: their timings scatter.
_MARGIN = 0.03


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


@dataclass(slots=True)
class _Factor:
    """Measured over predicted of one way and size."""

    value: float = 1.0
    first: list[float] = field(default_factory=list)

    def update(self, ratio: float) -> None:
        if len(self.first) < _FIRST:
            self.first.append(ratio)
            self.value = median(self.first)
        else:
            # One that waited for a preempted core says nothing about the way: it counts for no more than some.
            self.value += _NEWEST * (min(ratio, 2 * self.value) - self.value)


@dataclass(slots=True)
class _Size:
    """What is known about dispatches of one size."""

    #: Per way that has been measured.
    factors: dict[Mode, _Factor] = field(default_factory=dict)
    usual: Mode | None = None
    #: Dispatches of the usual way until the next trial, and between trials.
    trial_in: int = _LOOK_AFTER
    trial_after: int = _FIRST_TRIAL_AFTER
    #: The way on trial and its dispatches left.
    on_trial: Mode | None = None
    trial_left: int = 0


class ModeChooser:
    """Chooses for each dispatch; remembers per size. Deterministic in what it is told."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}

    @staticmethod
    def size(shape: DispatchShape) -> int:
        """Return the size class of a dispatch: its bytes in powers of four."""
        return max(shape.instance_bytes, 1).bit_length() // 2

    def factor(self, size: int, mode: Mode) -> float:
        """Return measured over predicted; 1 before the first measurement."""
        known = self._sizes.get(size)
        found = None if known is None else known.factors.get(mode)
        return 1.0 if found is None else found.value

    def choose(self, size: int, predicted_s: Mapping[Mode, float]) -> Mode:
        """Return the way for a dispatch of ``size``, given what each possible way is predicted to take."""
        known = self._sizes.setdefault(size, _Size())
        if len(predicted_s) == 1:
            return next(iter(predicted_s))
        # A way without a factor of its own gets the best of the others': what is unknown is worth a look.
        factors = {mode: factor.value for mode, factor in known.factors.items()}
        typical = min(factors.values(), default=1.0)
        expected = {mode: s * factors.get(mode, typical) for mode, s in predicted_s.items()}
        best = min(expected, key=lambda mode: expected[mode])
        if known.usual not in expected or expected[best] < (1 - _MARGIN) * expected[known.usual]:
            if known.usual is not None:
                known.trial_after = max(_FIRST_TRIAL_AFTER, known.trial_after // 2)  # what seemed sure is not
            known.usual = best
        if known.on_trial in expected and known.trial_left > 0:
            known.trial_left -= 1
            return known.on_trial
        known.on_trial = None
        known.trial_in -= 1
        if known.trial_in <= 0:
            self._begin_trial(known, expected)
        return known.on_trial or known.usual

    def _begin_trial(self, known: _Size, expected: Mapping[Mode, float]) -> None:
        assert known.usual is not None
        others = [m for m, s in expected.items() if m != known.usual and s < _HOPELESS * expected[known.usual]]
        # The one that was never tried comes first, then the likeliest.
        others.sort(key=lambda mode: (mode in known.factors, expected[mode]))
        new = bool(others) and others[0] not in known.factors
        if others:
            known.on_trial, known.trial_left = others[0], (_LOOK if new else _TRIAL) - 1
        if new:
            known.trial_in = _LOOK_AFTER
            return
        known.trial_in = known.trial_after
        known.trial_after = min(2 * known.trial_after, _LONGEST_TRIAL_AFTER)

    def observed(self, size: int, mode: Mode, *, predicted_s: float, actual_s: float) -> None:
        """Learn from a dispatch of ``size`` that took ``actual_s``."""
        if predicted_s <= 0 or actual_s <= 0:
            return
        factors = self._sizes.setdefault(size, _Size()).factors
        factors.setdefault(mode, _Factor()).update(actual_s / predicted_s)

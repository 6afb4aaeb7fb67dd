"""Which way a dispatch goes, as an attention instance decides it: by order, as the first one of all says, or by
the cost model and by how fast layers follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from janus.config.options import ExchangeName
from janus.core.exchange_chooser import ModeChooser
from janus.core.exchange_cost import DispatchShape, LinkCost, predict
from janus.core.exchange_routes import MODES, Mode, gathers
from janus.core.placement import Placement
from janus.messages.control import ExchangeWay

#: Until links have been measured: what a message costs on one machine, and in its shared memory.
ASSUMED_INTER = LinkCost(message_s=40e-6, latency_s=30e-6, byte_s=0.5e-9)
ASSUMED_INTRA = LinkCost(message_s=15e-6, latency_s=15e-6, byte_s=0.1e-9)

#: The first attention instance says what it has chosen on every change, and again after so many dispatches; the others
#: do as it does until they have not heard for this many of their own. Then the next one decides.
_SAY_AGAIN_AFTER = 256
_FORGET_AFTER = 1024
#: Batch sizes whose predictions are kept.
_PREDICTIONS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Decision:
    """The way that one dispatch goes, and why."""

    mode: Mode
    #: Size class of the dispatch.
    size: int = 0
    #: What the cost model says that it takes, seconds; 0 where there was nothing to choose.
    predicted_s: float = 0.0
    #: The window of a trial that it belongs to; 0 for none.
    window: int = 0


class ModeChoice:
    """``name``: "auto", or the way that every dispatch goes where it is possible."""

    def __init__(self, name: ExchangeName) -> None:
        self.name = name
        self.inter = ASSUMED_INTER
        self.intra = ASSUMED_INTRA
        self._members = 1
        self._possible: tuple[Mode, ...] = ("direct",)
        self._chooser = ModeChooser()
        #: By bytes of a batch: what each way is predicted to take.
        self._predicted: dict[int, dict[Mode, float]] = {}
        #: What the first instance says, by size; who that is, and dispatches since it was heard.
        self._told: dict[int, Mode] = {}
        self._teller = ""
        self._silence = _FORGET_AFTER
        #: What this instance last said as the first one, by size, and dispatches since it said anything.
        self._said: dict[int, Mode] = {}
        self._unsaid = 0

    def possible(self, *, members: int, placement: Placement) -> tuple[Mode, ...]:
        """Return the ways that differ here, and remember them for ``decide``.

        ``members``: attention instances of this node that are linked, this one included.
        """
        ways: list[Mode] = ["direct"]
        if members > 1:
            ways.append("aggregated")
        if any(len(group) > 1 for group in placement.groups):
            ways.append("two-phase")
        if self.name != "auto":
            # Where the wanted way is the same as another, that one is it.
            wanted: Mode = self.name
            fallback: Mode = "aggregated" if wanted == "two-phase" and "aggregated" in ways else "direct"
            ways = [wanted if wanted in ways else fallback]
        self._members = members
        self._possible = tuple(mode for mode in MODES if mode in ways)
        self._predicted.clear()
        return self._possible

    @property
    def has_choice(self) -> bool:
        """Whether there is anything to choose, or to predict."""
        return len(self._possible) > 1

    @property
    def trials(self) -> int:
        """Trials of another way that this instance has led to their end."""
        return self._chooser.trials

    @property
    def changes(self) -> int:
        """Trials after which another way was taken."""
        return self._chooser.changes

    def decide(self, batch_bytes: int, shape: Callable[[], DispatchShape]) -> Decision:
        """Return the way for a dispatch.

        Args:
            batch_bytes: of its activations.
            shape: says how it looks; asked only while there is a choice, and once per ``batch_bytes``.
        """
        if len(self._possible) == 1:
            return Decision(self._possible[0])
        predicted = self._predicted.get(batch_bytes)
        if predicted is None:
            predicted = self._predict(batch_bytes, shape())
        size, window = ModeChooser.size(batch_bytes), 0
        mode = self._as_told(size, predicted)
        if mode is None:
            mode, window = self._chooser.choose(size, predicted.keys(), lambda: predicted)
        return Decision(mode, size, predicted[mode], window)

    def _predict(self, batch_bytes: int, shape: DispatchShape) -> dict[Mode, float]:
        ways = list(self._possible)
        if not gathers("aggregated", members=self._members, batch_bytes=batch_bytes) and "aggregated" in ways:
            ways.remove("aggregated")  # each member sends its own to each instance: that is the direct way
        predicted = {mode: predict(mode, shape, inter=self.inter, intra=self.intra) for mode in ways}
        if len(self._predicted) >= _PREDICTIONS_KEPT:
            self._predicted.clear()
        self._predicted[batch_bytes] = predicted
        return predicted

    def took(self, decision: Decision, seconds: float) -> None:
        """Learn that a dispatch was followed by the next layer's after ``seconds``."""
        self._chooser.took(decision.size, decision.window, seconds)

    def settled(self, batch_bytes: int) -> bool:
        """Return whether this instance has tried every way for batches of this size, which it has dispatched."""
        ways = self._predicted.get(batch_bytes, {})
        return len(ways) == 1 or self._chooser.settled(ModeChooser.size(batch_bytes), ways)

    def measured(self, *, inter: LinkCost | None = None, intra: LinkCost | None = None) -> None:
        """Predict with what links were measured to cost from now on."""
        self.inter = inter or self.inter
        self.intra = intra or self.intra
        self._predicted.clear()

    # -- one decides for all -------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this instance decides for itself, and for whoever listens."""
        return self._silence >= _FORGET_AFTER

    def _as_told(self, size: int, ways: Mapping[Mode, float]) -> Mode | None:
        """Return what the first instance goes by: to gather rows, and to relay them, pays when all do.

        A batch of a size that it does not have goes as its nearest does: it may wait in the same bundles.
        """
        if self._silence >= _FORGET_AFTER:
            return None
        self._silence += 1
        told = self._told.get(size)
        if told is None:
            told = self._told[min(self._told, key=lambda known: abs(known - size))]
        if told in ways:
            return told
        return "direct" if told == "aggregated" else None

    def news(self, decision: Decision) -> ExchangeWay | None:
        """Return what this instance has to say to the others about its ``decision``, if anything."""
        if not decision.predicted_s or self._silence < _FORGET_AFTER:
            return None
        self._unsaid += 1
        if self._said.get(decision.size) == decision.mode and self._unsaid <= _SAY_AGAIN_AFTER:
            return None
        self._said[decision.size] = decision.mode
        self._unsaid = 0
        return ExchangeWay(size=decision.size, way=decision.mode)

    def told(self, message: ExchangeWay, *, by: str) -> None:
        """Do as ``by`` does, an instance before this one: the first of those that say anything counts."""
        if self._silence < _FORGET_AFTER and self._teller < by:
            return
        if by != self._teller:
            self._told.clear()
        self._teller, self._silence = by, 0
        self._told[message.size] = message.way

    def members_changed(self) -> None:
        """Another member may be the first now."""
        self._told.clear()
        self._said.clear()
        self._silence = _FORGET_AFTER

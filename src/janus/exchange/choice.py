"""Which way a dispatch goes, as an attention instance decides it: by order, or by the cost model and its timings."""

from __future__ import annotations

from dataclasses import dataclass

from janus.config.options import ExchangeName
from janus.core.exchange_cost import DispatchShape, LinkCost, ModeChooser, predict
from janus.core.exchange_routes import MODES, Mode
from janus.core.placement import Placement
from janus.messages.control import ExchangeWay

#: Until links have been measured: what a message costs on one machine, and in its shared memory.
ASSUMED_INTER = LinkCost(message_s=40e-6, latency_s=30e-6, byte_s=0.5e-9)
ASSUMED_INTRA = LinkCost(message_s=15e-6, latency_s=15e-6, byte_s=0.1e-9)

#: The first member of a node says what it has chosen on every change, and again after so many dispatches; the others
#: do as it does until they have not heard for this many of their own.
_SAY_AGAIN_AFTER = 256
_FORGET_AFTER = 1024


@dataclass(frozen=True, slots=True)
class Decision:
    """The way that one dispatch goes, and why."""

    mode: Mode
    #: Size class of the dispatch.
    size: int = 0
    #: What the model alone says, and what timings made of it, seconds; 0 where there was nothing to choose.
    model_s: float = 0.0
    predicted_s: float = 0.0


class ModeChoice:
    """``name``: "auto", or the way that every dispatch goes where it is possible."""

    def __init__(self, name: ExchangeName) -> None:
        self.name = name
        self.inter = ASSUMED_INTER
        self.intra = ASSUMED_INTRA
        self._possible: tuple[Mode, ...] = ("direct",)
        self._chooser = ModeChooser()
        #: By size: what the node's first member has chosen, and dispatches since it said so.
        self._told: dict[int, tuple[Mode, int]] = {}
        #: By size: what this instance last said as the first member, and dispatches since.
        self._said: dict[int, tuple[Mode | None, int]] = {}

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
        self._possible = tuple(mode for mode in MODES if mode in ways)
        return self._possible

    @property
    def has_choice(self) -> bool:
        """Whether a decision needs the dispatch's shape: to choose, or to say what it is predicted to take."""
        return len(self._possible) > 1

    def decide(self, shape: DispatchShape | None) -> Decision:
        """Return the way for a dispatch; ``shape`` may be ``None`` where there is nothing to choose."""
        if shape is None:
            return Decision(self._possible[0])
        predicted = {mode: predict(mode, shape, inter=self.inter, intra=self.intra) for mode in self._possible}
        size = ModeChooser.size(shape)
        mode = self._as_told(size)
        if mode is None:
            mode = self._chooser.choose(size, predicted)
        model_s = predicted[mode]
        return Decision(mode, size, model_s, model_s * self._chooser.factor(size, mode))

    def _as_told(self, size: int) -> Mode | None:
        """Return what the node's first member goes by: to gather rows pays when all members do."""
        mode, age = self._told.get(size, ("direct", _FORGET_AFTER))
        if age >= _FORGET_AFTER or mode not in self._possible:
            return None
        self._told[size] = (mode, age + 1)
        return mode

    def news(self, decision: Decision) -> ExchangeWay | None:
        """Return what the node's first member has to say to the others about its ``decision``, if anything."""
        if decision.model_s <= 0:
            return None
        mode, age = self._said.get(decision.size, (None, 0))
        if mode == decision.mode and age < _SAY_AGAIN_AFTER:
            self._said[decision.size] = (mode, age + 1)
            return None
        self._said[decision.size] = (decision.mode, 0)
        return ExchangeWay(size=decision.size, way=decision.mode)

    def told(self, message: ExchangeWay) -> None:
        """Do as the node's first member does."""
        self._told[message.size] = (message.way, 0)

    def members_changed(self) -> None:
        """Another member may be the first now."""
        self._told.clear()
        self._said.clear()

    def took(self, decision: Decision, actual_s: float) -> None:
        """Learn what a dispatch took, the experts' work left out."""
        if decision.model_s > 0:
            self._chooser.observed(decision.size, decision.mode, predicted_s=decision.model_s, actual_s=actual_s)

    def measured(self, *, inter: LinkCost | None = None, intra: LinkCost | None = None) -> None:
        """Predict with what links were measured to cost from now on."""
        self.inter = inter or self.inter
        self.intra = intra or self.intra

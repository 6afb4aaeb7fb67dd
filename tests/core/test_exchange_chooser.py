"""A contest per size, and what sizes know of each other."""

from __future__ import annotations

from collections.abc import Mapping

from janus.core.exchange_chooser import ModeChooser
from janus.core.exchange_routes import MODES, Mode

#: As the model has it, and as it is: two phases are the slowest by far.
PREDICTED: dict[Mode, float] = {"direct": 2e-3, "aggregated": 1.5e-3, "two-phase": 1e-3}
ACTUAL: dict[Mode, float] = {"direct": 1e-3, "aggregated": 1.5e-3, "two-phase": 2e-3}


def run(chooser: ModeChooser, size: int, dispatches: int, ways: tuple[Mode, ...] = MODES) -> list[Mode]:
    taken = []
    for _ in range(dispatches):
        mode, window = chooser.choose(size, ways, lambda: PREDICTED)
        chooser.took(size, window, ACTUAL[mode])
        taken.append(mode)
    return taken


def test_it_begins_with_the_model_and_ends_with_what_is() -> None:
    chooser = ModeChooser()
    taken = run(chooser, 5, 200)
    assert taken[0] == "two-phase"
    assert taken[-1] == "direct"
    assert chooser.settled(5, MODES)
    assert not chooser.settled(6, MODES)
    assert chooser.changes >= 1
    assert chooser.trials >= 2


def test_a_size_begins_with_what_its_neighbour_has_learned_and_one_far_away_does_not() -> None:
    chooser = ModeChooser()
    run(chooser, 5, 200)
    assert run(chooser, 6, 1) == ["direct"]
    assert run(chooser, 9, 1) == ["two-phase"]
    # What the neighbour has not tried is judged by the model, beside the neighbour's usual way.
    partial = ModeChooser()
    run(partial, 5, 200, ("direct", "two-phase"))
    assert partial.choose(4, ("aggregated", "two-phase"), lambda: PREDICTED)[0] == "aggregated"


def test_a_neighbour_that_goes_a_way_that_is_not_possible_here_says_nothing() -> None:
    chooser = ModeChooser()
    run(chooser, 5, 200)

    def predicted() -> Mapping[Mode, float]:
        return {"aggregated": 2e-3, "two-phase": 1e-3}

    assert chooser.choose(6, ("aggregated", "two-phase"), predicted)[0] == "two-phase"


def test_one_possible_way_is_taken_and_never_put_on_trial() -> None:
    chooser = ModeChooser()
    only: tuple[Mode, ...] = ("direct",)
    assert set(run(chooser, 0, 100, only)) == {"direct"}
    assert chooser.settled(0, only)
    assert chooser.trials == 0


def test_the_class_of_a_size_is_in_powers_of_four() -> None:
    assert [ModeChooser.size(1 << bits) for bits in range(1, 7)] == [1, 1, 2, 2, 3, 3]
    assert ModeChooser.size(0) == ModeChooser.size(1)

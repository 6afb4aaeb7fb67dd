"""How a cluster stands, in sentences: what it waits for, and why it is not as it should be."""

from __future__ import annotations

from janus.core.epochs import PlacementEpochs
from janus.core.registry import Registry


def waiting_for(registry: Registry, epochs: PlacementEpochs) -> list[str]:
    """Return why there is no placement in force, or not yet the newest one: one sentence per cause."""
    sentences = [f"{name} has not registered" for name in registry.missing]
    for epoch, names in epochs.waiting_for.items():
        sentences += [f"{name} is loading the experts of epoch {epoch}" for name in names]
    if epochs.problem:
        sentences.append(epochs.problem)
    if not sentences and not epochs.was_in_force and registry.expected["expert"]:
        sentences.append("the placement that an earlier controller had in force is being recalled")
    return sentences


def degraded(registry: Registry, epochs: PlacementEpochs) -> list[str]:
    """Return why the cluster is not as it should be: one sentence per cause, empty when all is well."""
    sentences = [f"{name} has not registered" for name in registry.missing]
    sentences += [text for text in (epochs.problem, epochs.stuck) if text]
    for name, member in registry.members.items():
        if member.state != "failed" and member.load_problem:
            sentences.append(f"{name} could not load its experts: {member.load_problem}")
    sentences += [f"{name} is late for {by}" for name, by in sorted(registry.suspected().items())]
    table = epochs.in_force
    if table is not None:
        gone = [name for name in table.instances if not registry.is_there(name)]
        sentences += [f"{name} is gone, and others serve its experts" for name in gone]
    return sentences

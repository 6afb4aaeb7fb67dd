"""What the tests here share: checkpoints, what ``transformers`` says of them, and the clusters that serve them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e import checkpoints
from tests.e2e.cluster import Clusters
from tests.e2e.oracle import Oracle


@dataclass(kw_only=True)
class Lab:
    """Everything is made when it is first asked for, and once."""

    directory: Path
    clusters: Clusters
    _models: dict[str, Path] = field(default_factory=dict)
    _oracles: dict[str, Oracle] = field(default_factory=dict)

    def model_dir(self, name: str) -> Path:
        """The directory of a model that ``checkpoints.write`` knows."""
        if name not in self._models:
            self._models[name] = checkpoints.write(name, self.directory / name)
        return self._models[name]

    def oracle(self, name: str) -> Oracle:
        """``transformers`` in float32 on that model."""
        if name not in self._oracles:
            self._oracles[name] = Oracle(checkpoints.reference(self.model_dir(name)))
        return self._oracles[name]

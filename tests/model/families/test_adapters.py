"""Adapters stay small, know nothing but configs and names, and are what docs/adding-a-model.md shows."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from janus.errors import CheckpointError
from janus.model.config import ModelConfig
from janus.model.families import FAMILIES
from tests.model.families.variants import VARIANTS, config_of

ROOT = Path(__file__).parents[3]
DIRECTORY = ROOT / "src" / "janus" / "model" / "families"
ADAPTERS = sorted(path for path in DIRECTORY.glob("*.py") if path.stem in FAMILIES)
GUIDE = (ROOT / "docs" / "adding-a-model.md").read_text()


def test_every_family_is_a_file_of_its_name() -> None:
    assert [path.stem for path in ADAPTERS] == sorted(FAMILIES)


def test_every_family_is_tested_in_at_least_four_configs() -> None:
    assert set(VARIANTS) == set(FAMILIES)
    for family, variants in VARIANTS.items():
        different = {
            json.dumps(config_of(family, **changes).to_dict(), sort_keys=True) for changes in variants.values()
        }
        assert len(different) == len(variants) >= 4, family


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_is_small_and_computes_nothing(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 150
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not {name for name in imported if name and name.split(".")[0] in ("torch", "numpy")}


def test_nothing_else_knows_a_familys_name() -> None:
    """Of the server: the planner reads published configs by their keys, and the benchmark's model is a Qwen3-MoE."""
    where = [*(ROOT / "src" / "janus" / "model").rglob("*.py"), *(ROOT / "src" / "janus" / "runtime").rglob("*.py")]
    named = {
        f"{path.stem}: {name}"
        for path in where
        if path.parent != DIRECTORY
        for name in FAMILIES
        if f'"{name}"' in path.read_text()
    }
    assert named == {"random_model: qwen3_moe"}


@pytest.mark.parametrize("path", ["src/janus/model/families/olmoe.py", "tests/model/families/test_olmoe.py"])
def test_the_guide_shows_the_files_as_they_are(path: str) -> None:
    assert f"`{path}`" in GUIDE
    assert f"```python\n{(ROOT / path).read_text()}```" in GUIDE


def test_the_guide_shows_the_diff_as_it_is() -> None:
    """Of the list of adapters, the lines that name it."""
    counts = {}
    for path in ("src/janus/model/families/olmoe.py", "tests/model/families/test_olmoe.py"):
        counts[path] = len((ROOT / path).read_text().splitlines())
    path = "src/janus/model/families/__init__.py"
    counts[path] = sum("olmoe" in line.lower() for line in (ROOT / path).read_text().splitlines())
    shown = re.findall(r"^((?:src|tests)/\S+) +(\d+) \+$", GUIDE, re.MULTILINE)
    assert {path: int(count) for path, count in shown} == counts


def test_the_guide_lists_every_family_and_setting_that_there_is() -> None:
    assert f"{', '.join(f'`{name}`' for name in sorted(FAMILIES)[:-1])} and `{max(FAMILIES)}`" in GUIDE.replace(
        "\n", " "
    )
    table = [line.split("|")[1] for line in GUIDE.splitlines() if line.startswith("| `")]
    settings = {name for cell in table for name in cell.split("`")[1::2]} - {"GateConfig", "ModelConfig"}
    assert settings <= set(ModelConfig.__dataclass_fields__)


def test_an_unknown_family_is_refused_with_those_that_are_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama4"}))
    with pytest.raises(CheckpointError, match=r"model_type 'llama4' is not supported; supported: .*mixtral, olmoe"):
        ModelConfig.load(tmp_path)

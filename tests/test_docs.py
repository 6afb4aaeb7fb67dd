"""The documents say what is there: named functions exist, links lead somewhere, figures come from recorded results."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from benchmarks.demo import BEGIN, END, RESULT, render

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CODE = ("src", "services", "benchmarks")
REFERENCE = re.compile(r"`([\w/]+\.py)::([\w.]+)`")


def defined(path: Path, dotted: str) -> bool:
    """Whether ``path`` defines ``dotted``: ``function``, ``Class``, ``Class.method``, or a method by its name alone."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {f"{node.name}.{method}" for method in methods} | set(methods)
    return dotted in names


def references() -> list[tuple[str, str]]:
    return sorted({match for document in DOCUMENTS for match in REFERENCE.findall(document.read_text())})


@pytest.mark.parametrize(("file", "name"), references())
def test_every_function_that_a_document_names_exists(file: str, name: str) -> None:
    full = [ROOT / file] if "/" in file else [path for part in CODE for path in sorted((ROOT / part).rglob(file))]
    assert any(path.is_file() and defined(path, name) for path in full), f"{file} does not define {name}"


def test_the_journey_has_ten_steps_and_each_names_its_code() -> None:
    text = (ROOT / "docs" / "journey.md").read_text()
    steps = re.split(r"^(\d+)\. ", text, flags=re.MULTILINE)[1:]
    assert [int(number) for number in steps[::2]] == list(range(1, 11))
    for number, step in zip(steps[::2], steps[1::2], strict=True):
        assert REFERENCE.search(step), f"step {number} names no code"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_and_commands_that_documents_name_exist(document: Path) -> None:
    text = document.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert (
        set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets
    )
    commands = (ROOT / "services" / "janus_cli" / "__main__.py").read_text()
    known = set(re.findall(r'add_(?:command\(app, |typer\(.*name=)"([a-z]+)"', commands))
    assert set(re.findall(r"`janus ([a-z]+)", text)) <= known


def test_the_transcript_in_the_readme_is_the_recorded_one() -> None:
    shown = (ROOT / "README.md").read_text().partition(BEGIN)[2].partition(END)[0]
    assert shown == render(json.loads(RESULT.read_text()))

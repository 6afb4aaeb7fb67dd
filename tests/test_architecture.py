"""The arrows between packages and the rules of asynchronous code, read from the sources with ``ast``."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from janus.config.sources import known_environment

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "services").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))

_BASE = {"errors", "messages", "config"}
_CORE = _BASE | {"core"}
#: Package -> packages of ours that it may import; docs/architecture.md draws the same.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "messages": {"errors"},
    "config": {"errors", "messages"},
    "core": _BASE,
    "transport": _CORE,
    "model": _CORE,
    "text": {"errors"},
    "exchange": _CORE | {"transport", "model"},
    "runtime": _CORE | {"transport", "model", "text", "exchange"},
    "cluster": _CORE | {"transport", "model", "text", "exchange", "runtime"},
    "chaos": _BASE | {"cluster"},
    "simulation": _CORE,
    "profiles": _CORE,
    "profiling": _CORE | {"model", "cluster", "chaos", "profiles"},
}
SERVICES = {"janus_gateway", "janus_attention_server", "janus_expert_server", "janus_placement_controller", "janus_cli"}
#: Third-party module -> the files that may import it.
OWNED = {
    "ucxx": {"src/janus/transport/ucx.py"},
    "cupy": {
        "src/janus/model/device.py",
        "src/janus/model/kernels/aebs_gpu.py",
        "src/janus/runtime/device.py",
        "src/janus/transport/cuda.py",
    },
    "typer": {"src/janus/config/cli.py", "services/janus_cli/__main__.py"},
}
#: What decides must not act: no clock, loop, socket, thread or process in core.
NOT_IN_CORE = {"asyncio", "time", "socket", "threading", "subprocess", "os", "torch", "ucxx", "cupy", "structlog"}
#: Loaded where they are used, so that ``import janus`` and every ``--help`` work without them.
HEAVY_IN_MAIN = {"torch", "ucxx", "cupy", "fastapi", "uvicorn", "numpy"}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] == "services":
        return parts[1]
    return "janus" if parts[2] == "__init__.py" else parts[2].removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Every module that ``path`` imports, dotted; imports for type checkers only are no arrows at run time."""
    nodes = ast.iter_child_nodes(tree(path)) if top_level_only else ast.walk(tree(path))
    skipped = {id(node) for block in ast.walk(tree(path)) if _is_type_checking(block) for node in ast.walk(block)}
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def ids(paths: list[Path]) -> list[str]:
    return [relative(path) for path in paths]


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_imports_follow_the_arrows(path: Path) -> None:
    package = package_of(path)
    if package == "janus":
        assert not [name for name in imports(path) if name.startswith("janus.")]
        return
    for name in imports(path):
        head, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if head in SERVICES:
            assert head == package, f"{relative(path)} imports {name}: services do not import each other"
        if head != "janus" or package in SERVICES or not rest or target == "__version__":
            continue
        allowed = ARROWS[package] | {package}
        assert target in allowed, f"{relative(path)} imports {name}; {package} may import {sorted(allowed)}"


@pytest.mark.parametrize("module", OWNED)
def test_one_module_owns_a_third_party_one(module: str) -> None:
    found = {relative(path) for path in SOURCES for name in imports(path) if name.partition(".")[0] == module}
    assert found <= OWNED[module]


def test_ucxx_and_cupy_are_imported_lazily() -> None:
    for path in SOURCES:
        top = {name.partition(".")[0] for name in imports(path, top_level_only=True)}
        assert not top & {"ucxx", "cupy"}, f"{relative(path)} imports {top & {'ucxx', 'cupy'}} when it is imported"


@pytest.mark.parametrize("path", [path for path in SOURCES if package_of(path) == "core"], ids=relative)
def test_core_decides_and_does_not_act(path: Path) -> None:
    acting = {name for name in imports(path) if name.partition(".")[0] in NOT_IN_CORE}
    assert not acting
    coroutines = [node for node in ast.walk(tree(path)) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
    assert not coroutines


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__main__.py"], ids=relative)
def test_a_services_main_is_short_and_light(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 120
    assert not {name.partition(".")[0] for name in imports(path, top_level_only=True)} & HEAVY_IN_MAIN


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_every_task_has_an_owner_and_a_name(path: Path) -> None:
    parents = {child: node for node in ast.walk(tree(path)) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        where = f"{relative(path)}:{node.lineno}"
        assert called != "ensure_future", f"{where}: use create_task, with a name"
        if called != "create_task":
            continue
        assert any(keyword.arg == "name" for keyword in node.keywords), f"{where}: a task without a name"
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        in_group = isinstance(owner, ast.Name | ast.Attribute) and ast.unparse(owner) not in ("asyncio", "loop")
        kept = not isinstance(parents[node], ast.Expr)
        assert in_group or kept, f"{where}: nobody owns this task"


@pytest.mark.parametrize("path", TESTS, ids=ids(TESTS))
def test_tests_wait_for_events_and_never_sleep(path: Path) -> None:
    helpers = [node for node in ast.walk(tree(path)) if getattr(node, "name", "") == "eventually"]
    # The one place to poll, against a deadline, for what nobody announces.
    polling = {id(node) for helper in helpers for node in ast.walk(helper)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and id(node) not in polling:
            called = ast.unparse(node.func).rpartition(".")[2]
            # sleep(0) yields to the loop once: it waits for nothing.
            yields = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            assert called != "sleep" or yields, f"{relative(path)}:{node.lineno}: wait for an event, with a deadline"


def test_every_environment_variable_that_is_read_is_known() -> None:
    used: dict[str, str] = {}
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= {name: relative(path) for name in re.findall(r"^JANUS_[A-Z_]*[A-Z]$", node.value)}
    assert not {name: path for name, path in used.items() if name not in known_environment()}


def test_nothing_is_pickled() -> None:
    for path in SOURCES:
        pickling = {name for name in imports(path) if name.partition(".")[0] in ("pickle", "cloudpickle", "marshal")}
        assert not pickling, f"{relative(path)} imports {pickling}: tensors travel raw, control messages as msgpack"


def test_files_stay_small() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in SOURCES if path.name != "__init__.py")
    assert lengths[len(lengths) // 2] <= 150
    long = {relative(path): n for path in SOURCES if (n := len(path.read_text().splitlines())) > 600}
    assert not long

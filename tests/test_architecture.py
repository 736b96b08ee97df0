"""The floors of the package: imports lead down only, and configs use public names."""

from __future__ import annotations

import ast
import importlib
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bundle" / "dbisl"
FLOORS = [
    {"bridge", "utils"},
    {"losses", "data", "networks", "inferers", "metrics", "optimizers"},
    {"handlers", "transforms"},
    {"engines"},
]
"""Rooms of the package from the lowest floor up. A room uses lower floors, and its neighbours without a circle."""
LONGEST = 350
"""Lines of the longest module, but for the bridge: its formulas stay in one file."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "bundle").with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, in whatever form."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "dbisl":
            names |= {f"dbisl.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    rooms = set().union(*FLOORS)
    return {name for name in names if name.startswith("dbisl.") and name.split(".")[1] in rooms}


MODULES = {module_name(path): imports(path) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(index for index, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_lead_down(module: str) -> None:
    assert [other for other in MODULES[module] if floor(other) > floor(module)] == []


def test_no_modules_and_no_rooms_import_each_other_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, others in MODULES.items():
        room = module.split(".")[1]
        rooms.setdefault(room, set()).update({other.split(".")[1] for other in others} - {room})
    for graph in (MODULES, rooms):
        assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_modules_are_short() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "bridge.py"]
    lines = {path.name: len(path.read_text().splitlines()) for path in paths}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "bundle" / "configs").rglob("*.*")), ids=lambda path: path.name)
def test_configs_use_public_names(path: Path) -> None:
    """``dbisl.data.find_cases``, whatever file the function lies in."""
    for room, name in re.findall(r"\bdbisl\.(\w+)\.(\w+)", path.read_text()):
        module = importlib.import_module(f"dbisl.{room}")
        assert hasattr(module, name), f"{path.name}: dbisl.{room}.{name}"
        if hasattr(module, "__all__"):
            assert name in module.__all__, f"{path.name}: dbisl.{room}.{name}"

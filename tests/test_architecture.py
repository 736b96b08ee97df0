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
    {"utils"},
    {"bridge", "optimizers"},
    {"losses", "data", "networks", "inferers", "metrics"},
    {"handlers", "transforms"},
    {"engines"},
]
"""Rooms of the package from the lowest floor up. A room uses lower floors, and its neighbours without a circle."""
LONGEST = 400
"""Lines of the longest module."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "bundle").with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    nodes = ast.walk(ast.parse(path.read_text()))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name for name in names if name.startswith("dbisl.")}


MODULES = {module_name(path): imports(path) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(index for index, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_lead_down(module: str) -> None:
    assert [other for other in MODULES[module] if floor(other) > floor(module)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert list(TopologicalSorter(MODULES).static_order())  # raises CycleError


def test_modules_are_short() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "bundle" / "configs").rglob("*.*")), ids=lambda path: path.name)
def test_configs_use_public_names(path: Path) -> None:
    """``dbisl.data.find_cases``, whatever file the function lies in."""
    for room, name in re.findall(r"\bdbisl\.(\w+)\.(\w+)", path.read_text()):
        module = importlib.import_module(f"dbisl.{room}")
        assert hasattr(module, name), f"{path.name}: dbisl.{room}.{name}"
        if hasattr(module, "__all__"):
            assert name in module.__all__, f"{path.name}: dbisl.{room}.{name}"

"""Who may import whom. Read from the source, so that nothing has to run for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from passband.catalog import FAMILIES

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "passband").rglob("*.py"))
HEAVY = {"torch", "numpy", "scipy", "pydantic", "matplotlib", "accelerate", "pandas"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, *, at_import: bool = False) -> Iterator[str]:
    """Modules that a file imports anywhere; at_import: only what runs when it is imported."""
    tree = ast.parse(path.read_text())
    for node in _executed(tree.body) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_of(path).split(".")
                package = package if path.name == "__init__.py" else package[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *([base] if base else [])])
            for alias in node.names:  # a module of the package, or something in it
                name = f"{base}.{alias.name}"
                yield name if is_module(name) else base


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


def _executed(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _executed(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from _executed(getattr(node, field, None) or [])
        for handler in getattr(node, "handlers", ()):
            yield from _executed(handler.body)


def under(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


def room_of(path: Path) -> str | None:
    """The room a file belongs to: the package beside which a card.toml lies."""
    for folder in path.parents:
        if (folder / "card.toml").is_file():
            return module_of(folder / "__init__.py")
    return None


ROOMS = {room for path in FILES if (room := room_of(path))}


def allowed(path: Path) -> tuple[str, ...] | None:
    """The packages of ours that a file may import; None: no rule for it."""
    name = module_of(path)
    package = name.split(".")[1] if "." in name else ""
    if package == "parts":
        return ("passband.parts", "passband.errors")
    if package == "data":
        return ("passband.data", "passband.parts", "passband.errors")
    if package in FAMILIES:
        # Tasks and what a family's rooms share lie beside the rooms; ROOMS are ruled out below.
        return (
            "passband.parts", "passband.data", "passband.bench", "passband.errors",
            f"passband.{package}",
        )
    return None


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path: Path) -> None:
    may, own = allowed(path), room_of(path)
    names = {name for name in imported(path) if under(name, "passband")}
    if may is not None:
        wrong = {name for name in names if not under(name, *may)}
        assert not wrong, f"{module_of(path)} may import {', '.join(may)} only"
    if under(module_of(path), "passband.bench", "passband.cli", *(ROOMS or ("-",))):
        others = ROOMS - {own} if own else ROOMS
        wrong = {name for name in names if under(name, *others)}
        assert not wrong, "what two systems need belongs to passband.parts"
    if under(module_of(path), "passband.bench"):
        wrong = {name for name in names if under(name, *(f"passband.{f}" for f in FAMILIES))}
        assert not wrong, "the engine knows no family"


LIGHT = [p for p in FILES if under(
    module_of(p), "passband.cli", "passband.catalog", "passband.errors", "passband.__main__"
) or p == ROOT / "passband" / "__init__.py"]


@pytest.mark.parametrize("path", LIGHT, ids=module_of)
def test_the_command_line_imports_nothing_heavy(path: Path) -> None:
    names = {name.split(".")[0] for name in imported(path, at_import=True)}
    assert not names & HEAVY


def test_the_rules_see_what_they_should(tmp_path: Path) -> None:
    """The test of the test: relative, nested and conditional imports are all found."""
    path = ROOT / "passband" / "pde" / "some_room" / "model.py"
    source = tmp_path / "model.py"
    source.write_text(
        "import torch\n"
        "from ..tasks import Solver\n"
        "from . import claims\n"
        "def f():\n    import scipy.linalg\n"
        "if TYPE_CHECKING:\n    import numpy\n"
        "try:\n    import pandas\nexcept ImportError:\n    import json\n"
    )

    class Placed(type(path)):  # the text of one file at the place of another
        def read_text(self, *_: object, **__: object) -> str:
            return source.read_text()

    placed = Placed(path)
    assert set(imported(placed)) == {
        "torch", "passband.pde.tasks", "passband.pde.some_room", "scipy.linalg", "numpy", "pandas",
        "json",
    }
    assert set(imported(placed, at_import=True)) == {
        "torch", "passband.pde.tasks", "passband.pde.some_room", "pandas", "json",
    }

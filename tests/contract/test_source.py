"""What holds for every source file: its length, no printing, nothing unpickled."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("passband", "tests", "benchmarks", "examples")
FILES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
LIBRARY = sorted((ROOT / "passband").rglob("*.py"))
LONGEST = 800  # lines


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call as dotted text: ("torch.load", node)."""
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in found]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_does_not_print(path: Path) -> None:
    assert "print" not in {name for name, _ in calls(path)}


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_nothing_is_unpickled(path: Path) -> None:
    for name, node in calls(path):
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        where = f"line {node.lineno}: {name}"
        assert name.split(".")[0] not in ("pickle", "cloudpickle", "dill"), where
        assert name not in ("joblib.load", "pandas.read_pickle", "eval", "exec"), where
        if name == "torch.load":
            assert options.get("weights_only") == "True", where
        if name.endswith(("np.load", "numpy.load")):
            assert options.get("allow_pickle") == "False", where


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            assert not silent, f"line {node.lineno}: except ...: pass"


def test_every_family_with_tasks_can_be_scaffolded() -> None:
    for path in (ROOT / "passband").glob("*/tasks.py"):
        family = path.parent.name
        text = path.read_text()
        assert f'"{family}-line"' in text or (ROOT / "passband/scaffold" / family).is_dir(), (
            f"`passband new {family}` needs templates in passband/scaffold/{family}"
        )

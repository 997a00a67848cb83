"""Python sources that are installed anyway, as text: docstrings, and code without words.

>>> from pathlib import Path
>>> source = 'def add(a, b):\\n    "Sum of two."\\n    return a + b  # now\\n'
>>> module = parse(Path("m.py"), "m", source)
>>> [(d.kind, d.name, d.text) for d in module.docstrings]
[('function', 'add', 'Sum of two.')]
>>> module.code()
'def add(a, b):\\n    return a + b\\n'

Nothing is imported: files are parsed with `ast`.
"""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from passband.data.cache import digest

# Parts of the standard library that distributors split off or that later versions drop, tests,
# and copies of other projects. Without them the corpora of two installations differ little.
_LEFT_OUT = frozenset({
    "test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "distutils", "ensurepip",
    "pydoc_data", "site-packages", "dist-packages", "__pycache__", "__phello__", "_vendor",
    "externals", "_pytest", "testing",
})
# A string of any kind, or a comment: whichever begins first swallows the other.
_STRING_OR_COMMENT = re.compile(
    r"""(?P<string>\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''"""
    r"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<comment>\#[^\n]*)""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Docstring:
    """kind: module, class or function; name: of what it documents, without its owners."""

    kind: str
    name: str
    text: str


@dataclass(frozen=True)
class Module:
    """One parsed source file."""

    name: str
    source: str
    tree: ast.Module

    @cached_property
    def docstrings(self) -> tuple[Docstring, ...]:
        return tuple(
            Docstring(_KINDS[type(node)], getattr(node, "name", self.name), text)
            for node, _ in _documented(self.tree) if (text := ast.get_docstring(node))
        )

    def code(self) -> str:
        """The source without comments, docstrings and the blank lines they leave."""
        lines = self.source.split("\n")
        for node, first in _documented(self.tree):
            _cut(lines, first, alone=len(node.body) == 1 and not isinstance(node, ast.Module))
        # Line breaks inside strings are no ends of lines: what looks blank there is content.
        text = _STRING_OR_COMMENT.sub(
            lambda m: (m["string"] or "").replace("\n", "\0"), "\n".join(lines)
        )
        kept = [line.rstrip() for line in text.split("\n") if line.strip()]
        return "".join(line + "\n" for line in kept).replace("\0", "\n")



_KINDS: dict[type, str] = {
    ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function",
    ast.AsyncFunctionDef: "function",
}


def _documented(tree: ast.Module) -> Iterator[tuple[ast.Module, ast.Expr]]:
    """Nodes that have a docstring, each with the expression that is it."""
    for node in ast.walk(tree):
        if type(node) not in _KINDS or not node.body:  # type: ignore[attr-defined]
            continue
        first = node.body[0]  # type: ignore[attr-defined]
        value = getattr(first, "value", None)
        if isinstance(first, ast.Expr) and isinstance(getattr(value, "value", None), str):
            yield node, first  # type: ignore[misc]


def _cut(lines: list[str], first: ast.Expr, *, alone: bool) -> None:
    """Take an expression out of its lines; `alone`: a body that needs a statement keeps one."""
    assert first.end_lineno is not None and first.end_col_offset is not None
    start, end = first.lineno - 1, first.end_lineno - 1
    # Columns count bytes of UTF-8.
    before = lines[start].encode()[: first.col_offset].decode()
    after = lines[end].encode()[first.end_col_offset :].decode()
    filler = "pass" if alone or after.lstrip().startswith(";") else ""
    lines[start : end + 1] = [before + filler + after, *[""] * (end - start)]


def parse(path: Path, name: str, source: str | None = None) -> Module | None:
    """A parsed file; None when it is no Python of this version or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8") if source is None else source
        with warnings.catch_warnings():  # invalid escapes in other people's sources
            warnings.simplefilter("ignore")
            return Module(name, text.replace("\f", ""), ast.parse(text))
    except (SyntaxError, ValueError):
        return None


def bucket(name: str) -> int:
    """0 to 99, from the name alone: a module is on the same side of a split everywhere."""
    return int(digest([name]), 16) % 100


def standard_library() -> list[tuple[str, Path]]:
    """(module name, file) of the standard library, in the order of the hashes of the names.

    The order is that of a fixed shuffle, so that the first n are a fair sample.
    """
    return _modules(Path(sysconfig.get_path("stdlib")), "")


def installed(package: str) -> list[tuple[str, Path]]:
    """The same of an installed package; empty when it is not there. It is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    return _modules(Path(spec.submodule_search_locations[0]), package)


def _modules(root: Path, package: str) -> list[tuple[str, Path]]:
    found = []
    for path in _files(root):
        inside = path.relative_to(root)
        parts = [*([package] if package else []), *inside.with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        name = ".".join(parts)
        if name and not parts[-1].startswith(("test_", "conftest")):
            found.append((name, path))
    return sorted(found, key=lambda item: (digest([item[0]]), item[0]))


def _files(root: Path) -> Iterator[Path]:
    # Not rglob: it would walk through every package below the standard library.
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in _LEFT_OUT and "-" not in name]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))

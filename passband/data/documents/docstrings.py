"""Public docstrings of installed scientific packages, with the names of what they document.

>>> found = docstrings(["networkx"])
>>> one = next(d for d in found if d.id == "networkx.algorithms.dag.ancestors")
>>> one.first, one.see_also
('Returns all nodes having a path to `source` in `G`.', ('descendants',))

Nothing is imported: sources are parsed with `ast`, once, and the texts are cached. What is
installed decides on them, so every collection made of them has a fingerprint.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from passband.data.cache import digest, stored_json
from passband.data.sources import installed, parse
from passband.errors import DataError

PACKAGES = (
    "matplotlib", "networkx", "numpy", "pandas", "scipy", "skimage", "sklearn", "statsmodels",
    "sympy", "torch", "transformers",
)
_HEADING = re.compile(r"^[^\S\n]*([A-Z][A-Za-z ]+)\n[^\S\n]*([-=~]{3,})[^\S\n]*$", re.MULTILINE)
_ENTRY = re.compile(r"[:`~\w.]+(\(\))?")


@dataclass(frozen=True)
class Documented:
    """A public function or class.

    id        dotted path in the source tree, such as "scipy.linalg._basic.solve"
    first     its first paragraph in one line
    rest      what follows, without the section See Also
    whole     what follows, with it
    see_also  names in that section, as they are written there
    """

    id: str
    package: str
    first: str
    rest: str
    whole: str
    see_also: tuple[str, ...]


def here(packages: Sequence[str] | None = None) -> tuple[str, ...]:
    """Those of the packages that are installed. Raises `DataError` where none is."""
    found = tuple(name for name in packages or PACKAGES if installed(name))
    if not found:
        raise DataError(
            f"not installed: {', '.join(packages or PACKAGES)}", expected="at least one package",
            mend="pip install 'passband[retrieval]'",
        )
    return found


def docstrings(packages: Sequence[str] | None = None) -> list[Documented]:
    """Everything public with a docstring of two paragraphs or more, ordered by id."""
    return [one for name in here(packages) for one in _of(name)]


@cache
def _of(package: str) -> tuple[Documented, ...]:
    files = installed(package)
    sizes = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files]
    key = {"version": 2, "package": package, "files": digest(map(str, sizes))}
    rows = stored_json("docstrings", key, lambda: sorted(_rows(package, files)))
    return tuple(Documented(*row[:5], tuple(row[5])) for row in rows)


def _rows(package: str, files: Sequence[tuple[str, Path]]) -> Iterator[list[object]]:
    for name, path in files:
        module = parse(path, name)
        for owner, node in _public(module.tree, name) if module else ():
            text = ast.get_docstring(node)
            first, _, whole = (text or "").partition("\n\n")
            if first.strip() and whole.strip():
                rest, links = without_see_also(whole)
                yield [owner, package, one_line(first), rest, whole.strip(), links]


def _public(tree: ast.AST, path: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """(dotted path, node): functions and classes, and methods of public classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            here = f"{path}.{node.name}"
            yield here, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, here)


def one_line(text: str) -> str:
    """
    >>> one_line(" two\\n   lines ")
    'two lines'
    """
    return " ".join(text.split())


def without_see_also(text: str) -> tuple[str, tuple[str, ...]]:
    """A docstring without its section See Also, and the names that the section lists.

    >>> section = "See Also\\n--------\\nsvd, eig : Values.\\nnorm\\n    Length."
    >>> without_see_also(f"Text.\\n\\n{section}\\n\\nNotes\\n-----\\nN.")
    ('Text.\\n\\nNotes\\n-----\\nN.', ('svd', 'eig', 'norm'))

    Sections are those of numpydoc, underlined; names stand before a colon or alone in a line that
    is not indented.
    """
    kept, names, at = [], [], 0
    headings = list(_HEADING.finditer(text))
    for i, heading in enumerate(headings):
        if heading[1].strip().lower() != "see also":
            continue
        end = headings[i + 1].start() if i + 1 < len(headings) else len(text)
        kept.append(text[at : heading.start()])
        at = end
        names += _names(text[heading.end() : end])
    return "".join([*kept, text[at:]]).strip(), tuple(dict.fromkeys(names))


def _names(section: str) -> Iterator[str]:
    for line in inspect.cleandoc(section).split("\n"):
        if line[:1].isspace() or not line.strip():
            continue
        listed = re.split(r"\s:(?:\s|$)", line, maxsplit=1)[0]
        for entry in listed.split(","):
            name = entry.strip()
            if _ENTRY.fullmatch(name):  # a sentence is no list of names
                role, _, inner = name.partition(":`")
                name = (inner if inner and not role.strip(":").count("`") else name).strip("`~: ")
                name = name.removesuffix("()")
                if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
                    yield name

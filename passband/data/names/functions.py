"""Names of the functions that C, C++ and Python sources define.

>>> source = "static int png_read(png_ptr p)\\n{ return 0; }\\nvoid Image::copy() const {}\\n"
>>> [(function.name, function.line) for function in functions_of(source, ".cpp")]
[('png_read', 1), ('copy', 3)]

Python is parsed with `ast`. C and C++ are read by their brackets alone: nothing is preprocessed or
included, of `#if ... #else` the first branch counts, and what a macro makes is not seen.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from passband.errors import DataError

C_LIKE = frozenset({".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".hxx", ".inl", ".cu"})
PYTHON = frozenset({".py", ".pyi"})
SUFFIXES = C_LIKE | PYTHON

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)|(?P<string>R"(?P<d>[^()\s\\]{0,16})\(.*?\)(?P=d)"|"""
    r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<word>[A-Za-z_]\w*|[0-9][\w.']*)|"""
    r"""(?P<mark>::|->|[=!<>]=|\S)""",
    re.DOTALL,
)
_DIRECTIVE = re.compile(r"\s*#\s*(\w+)\s*(.*)")
_DEF = re.compile(r"^\s*(?:async\s+)?def\s+([A-Za-z_]\w*)", re.MULTILINE)
# They take brackets and are no functions.
_NO_NAMES = frozenset((
    "__attribute__", "__declspec", "noexcept", "throw", "alignas", "decltype", "sizeof", "typeof",
    "__typeof__", "requires", "if", "for", "while", "switch", "return", "catch", "__asm__", "asm",
    "static_assert", "_Static_assert", "explicit", "constexpr", "auto", "void", "int", "char",
    "bool", "float", "double", "long", "short", "unsigned", "signed",
))
_TAIL = frozenset((
    "const", "volatile", "noexcept", "override", "final", "try", "throw", "&", "->", "requires",
))
_ACCESS = frozenset(("public", "private", "protected"))
_CLASSES = frozenset(("class", "struct", "union"))


@dataclass(frozen=True)
class Function:
    """One definition. file: relative to the tree it was found in; line counts from 1."""

    name: str
    file: str
    line: int


def functions_in(root: str | Path) -> list[Function]:
    """All functions of a file or a tree of files, by path and line; hidden folders are left out.

    >>> _ = Path("one.py").write_text("class A:\\n    def get(self): ...\\n")
    >>> functions_in(".")
    [Function(name='get', file='one.py', line=2)]

    Raises `DataError` where there is no source file of C, C++ or Python.
    """
    root = Path(root)
    files = sorted(_files(root)) if root.is_dir() else [root]
    if not files or any(path.suffix.lower() not in SUFFIXES for path in files):
        raise DataError(
            f"{root} has no sources", expected=f"files {' '.join(sorted(SUFFIXES))}",
            mend="give a folder with C, C++ or Python sources",
        )
    found = []
    for path in files:
        inside = path.relative_to(root).as_posix() if root.is_dir() else path.name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path} can't be read: {error.strerror}", expected="a readable source file",
            ) from None
        found += [Function(f.name, inside, f.line) for f in functions_of(data, path.suffix)]
    return found


def _files(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path


def functions_of(source: str | bytes, suffix: str = ".c") -> list[Function]:
    """Functions of one source text in the language of a file suffix; `file` is empty."""
    if suffix.lower() in PYTHON:
        return _python(source)
    text = source.decode("utf-8", errors="replace") if isinstance(source, bytes) else source
    return _Reader(text).functions


def _python(source: str | bytes) -> list[Function]:
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's sources
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # another version of Python: definitions line by line
        text = source.decode("utf-8", errors="replace") if isinstance(source, bytes) else source
        return [
            Function(m[1], "", text.count("\n", 0, m.start(1)) + 1) for m in _DEF.finditer(text)
        ]
    found = [
        Function(node.name, "", node.lineno) for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return sorted(found, key=lambda function: function.line)


# ---- C and C++ -----------------------------------------------------------------------------------


def _first_branches(text: str) -> str:
    """The text with directives and all but the first branches of conditions blanked out.

    Both branches of a condition often open the same bracket, which is closed once behind it.
    """
    lines: list[str] = []
    branches: list[tuple[bool, bool]] = []  # (this branch is read, one was read already)
    continued = False
    for line in text.split("\n"):
        match = None if continued else _DIRECTIVE.match(line)
        if continued or match:
            continued = line.rstrip().endswith("\\")
        lines.append(
            line if not continued and match is None and all(now for now, _ in branches) else ""
        )
        kind, rest = match.groups() if match else ("", "")
        if kind in ("if", "ifdef", "ifndef"):
            now = not (kind == "if" and rest.split("/")[0].strip() in ("0", "false"))
            branches.append((now, now))
        elif kind in ("else", "elif") and branches:
            done = branches[-1][1]
            branches[-1] = (not done, True)
        elif kind == "endif" and branches:
            branches.pop()
    return "\n".join(lines)


class _Reader:
    """Walks over declarations; bodies of functions are skipped, classes and namespaces entered."""

    def __init__(self, text: str) -> None:
        self.functions: list[Function] = []
        self.tokens = list(_tokens(_first_branches(text)))
        self.declaration: list[tuple[str, int]] = []
        self.old_style: tuple[str, int] | None = None  # "int f(a, b) int a; int b; {"
        place = 0
        while place < len(self.tokens):
            token, line = self.tokens[place]
            if token == "{":
                place = self._open(place)
                continue
            if token == ";":
                self._end()
            elif token == "}" or (token == ":" and self._words() <= _ACCESS):
                self.declaration = []
            elif token == "(":
                stop = self._behind(place, "(", ")")
                self.declaration += [("()", line)]
                place = stop
                continue
            else:
                self.declaration.append((token, line))
            place += 1

    def _open(self, place: int) -> int:
        """What an opening brace begins; returns where to read on."""
        name = self._function()
        words = self._words()
        inside = (
            not words or "namespace" in words or words <= {"extern", '""'}
            or bool(words & _CLASSES and "=" not in words)
        )
        if name is None and not words:
            name = self.old_style
        self.old_style = None
        if name is not None:
            self.functions.append(Function(name[0], "", name[1]))
            self.declaration = []
        elif inside and "enum" not in words:
            self.declaration = []
            return place + 1
        elif "operator" in words:
            self.declaration = []
        # A body, or a value in braces, behind which the declaration goes on.
        return self._behind(place, "{", "}")

    def _end(self) -> None:
        """A semicolon: behind an old-style head, the types of its parameters may follow."""
        tokens = [token for token, _ in self.declaration]
        if "()" in tokens:
            head = tokens.index("()")
            tail = tokens[head + 1 :]
            plain = tail and (tail[0][0].isalpha() or tail[0][0] == "_") and tail[0] not in _TAIL
            found = self._function(strict=False) if plain and len(tail) > 1 else None
            self.old_style = found if tokens.count("()") == 1 else None
        elif "=" in tokens:
            self.old_style = None
        self.declaration = []

    def _function(self, strict: bool = True) -> tuple[str, int] | None:
        """(name, line) when the declaration is the head of a function."""
        groups = []
        self._drop_template()
        for place, (token, _) in enumerate(self.declaration):
            if token in ("=", "enum", "operator"):
                return None
            if token == ":" and groups:  # a constructor's initialisers
                break
            before = self.declaration[place - 1] if place else ("", 0)
            if token == "()" and re.match(r"[A-Za-z_]", before[0]) and before[0] not in _NO_NAMES:
                groups.append((place, before))
        # A macro in capitals behind or before the name: "int f(int x) GUARDED_BY(lock) {".
        named = [group for group in groups if not group[1][0].isupper()] or groups
        if not named:
            return None
        place, name = named[-1]
        tail = [token for token, _ in self.declaration[place + 1 :]]
        is_class = bool({t for t, _ in self.declaration[:place]} & _CLASSES)
        follows = [t for t in tail if t[0].isalpha() and t not in _TAIL]
        if strict and is_class and follows:  # "class EXPORT(x) Name {"
            return None
        return name

    def _drop_template(self) -> None:
        """Take "template <class T, ...>" off the front of the declaration."""
        while self.declaration and self.declaration[0][0] == "template":
            depth = 0
            for place, (token, _) in enumerate(self.declaration):
                depth += (token == "<") - (token == ">")
                if token == ">" and depth == 0:
                    self.declaration = self.declaration[place + 1 :]
                    break
            else:
                return

    def _words(self) -> set[str]:
        return {token for token, _ in self.declaration}

    def _behind(self, place: int, opening: str, closing: str) -> int:
        """The place behind the bracket that closes the one at `place`."""
        depth = 0
        for at in range(place, len(self.tokens)):
            token = self.tokens[at][0]
            depth += (token == opening) - (token == closing)
            if depth == 0:
                return at + 1
        return len(self.tokens)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """(token, line); strings are all alike, comments and spaces left out."""
    line = 1
    for match in _TOKEN.finditer(text):
        token = match[0]
        if match["word"] or match["mark"]:
            yield token, line
        elif match["string"]:
            yield '""', line
        line += token.count("\n")

"""Functions of the installed Python's standard library; the risky ones are marked.

>>> named = standard_names()
>>> 0.02 < named.positives / len(named) < 0.3
True

A distinct name is "vulnerable" when a function of that name calls one of RISKY in its own body.
This is no vulnerability: it is a property that reviewers look for and that names tell little of.
"""

from __future__ import annotations

import ast
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np

from passband.data.cache import stored_json
from passband.data.names.named import Named
from passband.data.sources import parse, standard_library
from passband.parts.identifiers import fault

# Code from text or bytes, other processes, and writing to the file system and the network. A name
# that ends with a dot stands for all that begins with it.
RISKY = (
    "eval", "exec", "compile", "__import__", "open", "input", "io.open", "os.system", "os.popen",
    "os.fork", "os.exec", "os.spawn", "os.posix_spawn", "os.kill", "os.open", "os.write",
    "os.chmod", "os.chown", "os.remove", "os.unlink", "os.rename", "os.replace", "os.symlink",
    "os.link", "os.mkdir", "os.makedirs", "os.rmdir", "os.putenv", "os.dup", "subprocess.",
    "pickle.", "marshal.", "shelve.", "ctypes.", "tempfile.", "shutil.", "socket.", "mmap.",
    "urllib.request.", "tarfile.", "zipfile.", "importlib.import_module",
)
_BARE = frozenset(call for call in RISKY if "." not in call)
_PREFIXES = tuple(call for call in RISKY if "." in call)


def standard_names() -> Named:
    """Distinct function names in the order of the library's fixed shuffle; parsed once, cached."""
    key = {"python": platform.python_version(), "risky": RISKY}
    rows: list[list[Any]] = stored_json("names", key, _collect)
    return Named(tuple(name for name, _ in rows), np.array([bool(risky) for _, risky in rows]))


def _collect() -> list[list[Any]]:
    found: dict[str, bool] = {}
    for name, path in standard_library():
        module = parse(path, name)
        if module is None:
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not fault(node.name):
                found[node.name] = found.get(node.name, False) or _risky(node)
    return [[name, int(risky)] for name, risky in found.items()]


def _risky(function: ast.AST) -> bool:
    for node in _own(function):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in _BARE or called.startswith(_PREFIXES):
                return True
    return False


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child
            yield from _own(child)

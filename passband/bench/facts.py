"""Where a number comes from: versions, a hash of the code, the state of git, the machine.

Everything here is asked once a process and remembered.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from passband import __version__, catalog
from passband.catalog import Card

# What numbers depend on. Recorded where installed, whether or not a cell used it, so that rows of
# one environment agree.
PACKAGES = ("numpy", "scipy", "torch", "accelerate", "safetensors", "transformers", "peft")


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("passband", __version__), ("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def versions() -> dict[str, str]:
    return dict(_versions())


def code_hash(card: Card, *others: object) -> str:
    """Hash of the sources a row depends on: the room, the module of the class, the family's
    modules, `parts`, `data`, the engine, the catalog, and the packages that `others` (a task)
    come from.

    The report is left out: it shows numbers and makes none.
    """
    modules = tuple(type(other).__module__ for other in others)
    return _code_hash(card.folder, card.entry.partition(":")[0], card.family, modules)


@cache
def _code_hash(room: Path, module: str, family: str, modules: tuple[str, ...]) -> str:
    root = catalog.ROOT
    files = {
        *room.rglob("*.py"), room / "card.toml",
        root / "catalog.py", root / "errors.py",
        *(root / family).glob("*.py"), *(root / "bench").glob("*.py"),
        *(root / "parts").rglob("*.py"), *(root / "data").rglob("*.py"),
    }
    spec = importlib.util.find_spec(module)
    if spec and spec.origin:
        files.update(Path(spec.origin).parent.glob("*.py"))
    for name in modules:
        origin = inspect.getsourcefile(sys.modules[name]) if name in sys.modules else None
        if origin:
            files.add(Path(origin))
    # By name below the package, not by full path: the same code has the same hash everywhere.
    anchors = sorted({root, room.parent})
    digest = hashlib.blake2b(digest_size=8)
    for name, path in sorted((_relative(path, anchors), path) for path in files if path.is_file()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _relative(path: Path, anchors: list[Path]) -> str:
    for anchor in anchors:
        if path.is_relative_to(anchor):
            return path.relative_to(anchor).as_posix()
    return path.name


@cache
def dirty() -> bool:
    """Whether git sees changes in Passband's own files; False where it is not under git."""
    git = shutil.which("git")
    if git is None:
        return False
    try:
        asked = subprocess.run(
            [git, "-C", str(catalog.ROOT), "status", "--porcelain", "--", "."],
            capture_output=True, text=True, timeout=20, check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0 and bool(asked.stdout.strip())


@cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """CPU, cores, threads in use, memory in bytes, operating system; the GPU if torch has one."""
    import psutil

    facts: dict[str, Any] = {
        "cpu": _cpu(), "cores": os.cpu_count() or 1, "threads": threads(),
        "memory": psutil.virtual_memory().total, "system": platform.system(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def threads() -> int:
    """Threads that numerical libraries use in this process."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else os.cpu_count() or 1

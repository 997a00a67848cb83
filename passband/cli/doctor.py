"""`passband doctor`: what is here, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from passband.catalog import ROOT
from passband.errors import PassbandError

State = Literal["ok", "absent", "warning", "broken"]  # only what is broken is essential
SMALL_DISK = 2 * 1024**3  # bytes; below this a cache of generated data may not fit


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    state: State
    detail: str
    mend: str = ""


def examine() -> Iterator[Finding]:
    """Every check in turn. A check that itself breaks is a finding, and the others still run."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - whatever is broken here is what we look for
            yield Finding(check.__name__, "broken", f"{type(error).__name__}: {error}")


def python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()}, {sys.executable}"
    if good:
        yield Finding("python", "ok", detail)
    else:
        yield Finding("python", "broken", detail, "install python 3.11 or newer")


def core() -> Iterator[Finding]:
    """What every system needs; torch has a check of its own."""
    for extra, requirement in _requirements():
        name = _name(requirement)
        if extra or name == "torch":
            continue
        found = _version(name)
        if found:
            yield Finding(name, "ok", found)
        else:
            yield Finding(name, "broken", "not installed", f"pip install '{requirement}'")


def torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", "broken", "not installed", "pip install torch")
        return
    found = importlib.import_module("torch")
    devices = [f"cpu with {found.get_num_threads()} threads"]
    devices += [found.cuda.get_device_name(i) for i in range(found.cuda.device_count())]
    if found.backends.mps.is_available():
        devices.append("mps")
    yield Finding("torch", "ok", f"{found.__version__}; {', '.join(devices)}")


def extras() -> Iterator[Finding]:
    """Each extra of the package: present when all of its own requirements are."""
    needed: dict[str, list[str]] = {}
    for extra, requirement in _requirements():
        if extra:
            needed.setdefault(extra, []).append(_name(requirement))
    for extra, names in sorted(needed.items()):
        absent = [name for name in names if not _version(name)]
        if absent:
            mend = f"pip install 'passband[{extra}]'"
            yield Finding(f"extra {extra}", "absent", f"without {', '.join(absent)}", mend)
        else:
            yield Finding(f"extra {extra}", "ok", ", ".join(names))


def _requirements() -> Iterator[tuple[str, str]]:
    """(extra, requirement) of the installed package; the extra is empty for the core."""
    try:
        lines = metadata.requires("passband") or []
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        import tomllib

        project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
        lines = list(project["dependencies"])
        for extra, group in project["optional-dependencies"].items():
            lines += [f'{line}; extra == "{extra}"' for line in group]
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", marker)
        yield (extra.group(1) if extra else ""), requirement.strip()


def _name(requirement: str) -> str:
    """
    >>> _name("numpy>=1.26"), _name("coverage[toml] ~= 7")
    ('numpy', 'coverage')
    """
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _version(name: str) -> str:
    """The installed version; empty when there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def cache_folder() -> Path:
    """Where generated and cached data go: PASSBAND_CACHE, or the user's cache folder."""
    import platformdirs

    chosen = os.environ.get("PASSBAND_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("passband"))


def cache() -> Iterator[Finding]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        mend = "set PASSBAND_CACHE to a writable folder"
        yield Finding("cache", "broken", f"{folder}: {error}", mend)
        return
    yield Finding("cache", "ok", str(folder))
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1024**3:.1f} GB free at {folder}"
    if free < SMALL_DISK:
        yield Finding("disk", "warning", detail, "free some space, or set PASSBAND_CACHE elsewhere")
    else:
        yield Finding("disk", "ok", detail)


def pictures() -> Iterator[Finding]:
    """A figure drawn without a display: matplotlib, its fonts and its writable folder at once."""
    import io

    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont

    figure = Figure(figsize=(1, 1))
    figure.text(0.5, 0.5, "a")
    figure.savefig(io.BytesIO(), format="png")
    font = Path(findfont(FontProperties())).name
    yield Finding("pictures", "ok", f"drawn without a display, font {font}")


def git() -> Iterator[Finding]:
    """Results carry the state of the code; without git they carry its hash only."""
    if shutil.which("git") is None:
        yield Finding("git", "absent", "not found", "install git: results name their commit")
        return
    done = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True)
    yield Finding("git", "ok", done.stdout.strip())


def catalog() -> Iterator[Finding]:
    from passband.catalog import cards, tasks

    known = cards()
    systems = sum(card.kind == "system" for card in known.values())
    yield Finding("catalog", "ok", f"{systems} systems, {len(known) - systems} baselines")
    yield Finding("tasks", "ok", f"{len(tasks())} tasks")
    bad = 0
    for card in known.values():
        try:
            card.load()
            card.proofs()
        except (PassbandError, ImportError, AttributeError) as error:
            bad += 1
            absent = [f"pip install 'passband[{extra}]'" for extra in card.extras]
            # A card that names an extra may lack it: that is the user's choice, not a fault.
            yield Finding(card.id, "absent" if absent else "broken", str(error), "; ".join(absent))
    if not bad:
        yield Finding("cards", "ok", "all import")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python, core, torch, extras, cache, pictures, git, catalog,
)

"""`passband doctor`: what is here, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from passband.errors import PassbandError

State = Literal["ok", "missing", "broken"]  # missing: optional; broken: essential
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
    """What every system needs, from the requirements that the installed package declares."""
    for name in ("numpy", "scipy", "accelerate", "safetensors", "pydantic", "joblib", "psutil"):
        if importlib.util.find_spec(name) is None:
            yield Finding(name, "broken", "not installed", f"pip install {name}")
        else:
            yield Finding(name, "ok", metadata.version(name))


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
    for extra, requirement in _extra_requirements():
        needed.setdefault(extra, []).append(requirement)
    for extra, requirements in sorted(needed.items()):
        absent = [name for name in requirements if not _installed(name)]
        if absent:
            mend = f"pip install 'passband[{extra}]'"
            yield Finding(f"extra {extra}", "missing", f"without {', '.join(absent)}", mend)
        else:
            yield Finding(f"extra {extra}", "ok", ", ".join(requirements))


def _extra_requirements() -> Iterator[tuple[str, str]]:
    try:
        lines = metadata.requires("passband") or []
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        import tomllib

        path = Path(__file__).parents[2] / "pyproject.toml"
        optional = tomllib.loads(path.read_text())["project"]["optional-dependencies"]
        lines = [f'{line}; extra == "{name}"' for name, group in optional.items() for line in group]
    for line in lines:
        requirement, _, marker = line.partition(";")
        if "extra ==" in marker:
            extra = marker.split("extra ==")[1].strip().strip("\"')")
            yield extra, requirement.strip()


def _installed(requirement: str) -> bool:
    name = requirement.split("[")[0]
    for mark in "<>=!~ ":
        name = name.split(mark)[0]
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


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
        yield Finding("disk", "missing", detail, "free some space, or set PASSBAND_CACHE elsewhere")
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
    yield Finding("matplotlib", "ok", f"{metadata.version('matplotlib')}; font {font}")


def git() -> Iterator[Finding]:
    """Results carry the state of the code; without git they carry its hash only."""
    if shutil.which("git") is None:
        yield Finding("git", "missing", "not found", "install git: results name their commit")
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
            yield Finding(card.id, "missing" if absent else "broken", str(error), "; ".join(absent))
    if not bad:
        yield Finding("cards", "ok", "all import")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python, core, torch, extras, cache, pictures, git, catalog,
)

"""`passband new FAMILY NAME`: a room that works at once, to be replaced piece by piece.

Inside a checkout of Passband the room goes into its family. Elsewhere it becomes a small package
that announces itself to an installed Passband by an entry point.
"""

from __future__ import annotations

import keyword
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from string import Template

from passband.catalog import FAMILIES, ROOT, cards, tasks
from passband.errors import ConfigError, PassbandError, UnknownNameError

TEMPLATES = ROOT / "scaffold"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
ROOM = ("card.toml", "model.py", "system.py", "claims.py")


class ScaffoldError(PassbandError):
    """A room that can't be made: a name that is taken or malformed, a file in the way."""


@dataclass(frozen=True)
class Plan:
    """The files to write, path -> text, and the commands to go on with."""

    files: dict[Path, str]
    next_steps: tuple[str, ...]

    def write(self) -> list[Path]:
        """Write all files; none is overwritten, and none written when one is in the way."""
        taken = [path for path in self.files if path.exists()]
        if taken:
            raise ScaffoldError(
                f"{taken[0]} is there already", expected="a name that is free",
                mend="take another name, or move the file away",
            )
        for path, text in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:  # "x": a file that came up meanwhile is not overwritten
                file.write(text)
        return list(self.files)


def plan(family: str, name: str, folder: Path | None = None) -> Plan:
    """What `passband new` would write from `folder` (default: the current one).

    Raises UnknownNameError for a family, ScaffoldError for a name that can't be taken.
    """
    if family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES)
    module = name.replace("-", "_")
    if not NAME.fullmatch(name) or keyword.iskeyword(module):
        raise ScaffoldError(
            f"name {name!r}", expected="lower-case words joined by dashes, such as my-method",
        )
    if name in cards():
        raise ScaffoldError(
            f"the catalog has a system {name!r} already ({cards()[name].folder})",
            expected="a name that is free",
        )
    folder = Path.cwd() if folder is None else folder
    checkout = find_checkout(folder)
    line = f"{family}-line"
    own_tasks = any(task.family == family and task.name != line for task in tasks().values())
    template = TEMPLATES / (family if own_tasks else "line")
    if not template.is_dir():
        raise ConfigError(
            f"the family {family!r} has tasks of its own but no template",
            expected=f"a folder {template}",
            mend="write one after the pattern of passband/scaffold/pde",
        )
    package = f"passband.{family}.{module}" if checkout else module
    in_family = own_tasks or checkout or line in tasks()
    values = {
        "id": name, "title": name.replace("-", " ").capitalize(), "family": family,
        "class": "".join(word.capitalize() for word in name.split("-")),
        "package": package, "task": line,
        "tasks_module": f"passband.{family}.tasks" if in_family else f"{module}.tasks",
        "tasks_entry": "" if in_family
        else f'\n[project.entry-points."passband.tasks"]\n{name} = "{module}.tasks"\n',
    }

    def text(path: Path) -> str:
        template_text = path.with_name(path.name + ".template").read_text()
        return sort_imports(Template(template_text).substitute(values), package)

    room = {name: text(template / name) for name in ROOM}
    room["__init__.py"] = text(TEMPLATES / "init.py")
    test = text(template / "test.py")
    if checkout:
        return _in_checkout(checkout, family, module, room, test, {} if own_tasks else {
            "tasks.py": text(template / "tasks.py"),
        })
    if not in_family:
        room["tasks.py"] = text(template / "tasks.py")
    files = {folder / module / module / name: content for name, content in room.items()}
    files[folder / module / "pyproject.toml"] = text(TEMPLATES / "package" / "pyproject.toml")
    files[folder / module / "tests" / f"test_{module}.py"] = test
    return Plan(files, (
        f"cd {module}", "pip install -e .", "python -m pytest", f"passband reproduce {name}",
    ))


def sort_imports(text: str, package: str) -> str:
    """Imports of Passband and of the new package in the order that the linter wants.

    The templates can't have it: it depends on the family's name and on where the room goes.
    """
    lines = text.splitlines(keepends=True)
    own = "passband" if package.startswith("passband.") else package
    places = [i for i, line in enumerate(lines) if re.match(rf"from (passband|{own})\b", line)]
    if not places:
        return text
    first, last = places[0], places[-1] + 1  # they stand together in every template
    theirs = sorted(line for line in lines[first:last] if line.startswith("from passband"))
    ours = sorted(line for line in lines[first:last] if not line.startswith("from passband"))
    gap = ["\n"] if theirs and ours else []
    return "".join([*lines[:first], *theirs, *gap, *ours, *lines[last:]])


def find_checkout(folder: Path) -> Path | None:
    """The root of Passband's own source tree when `folder` lies in one."""
    for root in (folder, *folder.parents):
        path = root / "pyproject.toml"
        if path.is_file() and (root / "passband" / "catalog.py").is_file():
            try:
                if tomllib.loads(path.read_text())["project"]["name"] == "passband":
                    return root
            except (KeyError, tomllib.TOMLDecodeError):
                continue
    return None


def _in_checkout(
    root: Path, family: str, module: str, room: dict[str, str], test: str,
    family_files: dict[str, str],
) -> Plan:
    home = root / "passband" / family
    files = {home / module / name: content for name, content in room.items()}
    family_files["__init__.py"] = f'"""{FAMILIES[family].capitalize()}."""\n'
    for name, content in family_files.items():
        if not (home / name).exists():
            files[home / name] = content
    tests = root / "tests" / family / f"test_{module}.py"
    files[tests] = test
    shown = os.path.relpath(tests, Path.cwd())
    name = module.replace("_", "-")
    return Plan(files, (f"python -m pytest {shown}", f"passband reproduce {name}"))

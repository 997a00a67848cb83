"""`passband new` in a copy of the source tree, and outside of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from passband.cli.new import ScaffoldError, find_checkout, plan, sort_imports
from passband.errors import UnknownNameError

ROOT = Path(__file__).parents[1]
LONG = "a-rather-long-method-name"
FAMILIES = ["vision", "pde", "tuning", "speech", "retrieval", "dynamics"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "passband", folder / "passband", ignore=ignore)
    shutil.copytree(ROOT / "tests" / "contract", folder / "tests" / "contract", ignore=ignore)
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def python(*arguments: str, cwd: Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )


def succeed(*arguments: str, cwd: Path, path: Path) -> str:
    done = python(*arguments, cwd=cwd, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_room_passes_its_tests_the_contract_and_the_linter(copy: Path, family: str) -> None:
    name = f"{LONG}-{family}"
    module = name.replace("-", "_")
    made = succeed("-m", "passband", "new", family, name, "--json", cwd=copy, path=copy)
    written = [path for path in json.loads(made)["written"] if path.endswith(".py")]
    assert copy / f"passband/{family}/{module}/model.py" in map(Path, written)
    succeed("-m", "ruff", "check", *written, cwd=copy, path=copy)
    test, chosen = f"tests/{family}/test_{module}.py", ("-k", f"{module} or {name}")
    succeed("-m", "pytest", test, "tests/contract", *chosen, cwd=copy, path=copy)


def test_nothing_is_overwritten(copy: Path) -> None:
    room = copy / "passband" / "vision" / "taken"
    room.mkdir(parents=True)
    (room / "model.py").write_text("precious")
    done = python("-m", "passband", "new", "vision", "taken", cwd=copy, path=copy)
    assert done.returncode == 2
    assert "model.py is there already" in done.stderr
    assert [p.name for p in room.iterdir()] == ["model.py"]
    assert (room / "model.py").read_text() == "precious"
    shutil.rmtree(room)


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_a_checkout_it_is_a_package_that_passband_finds(
    family: str, tmp_path: Path
) -> None:
    made = plan(family, "my-method", folder=tmp_path)
    made.write()
    package = tmp_path / "my_method"
    succeed("-m", "pytest", cwd=package, path=ROOT)
    # What an installer would leave of the package's metadata.
    import tomllib

    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = package / "my_method-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-method\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ))
    code = (
        "from passband import catalog; card = catalog.get('my-method'); "
        "print(card.family, catalog.task(card.tasks[0]).verb in card.verbs, set(card.proofs()))"
    )
    paths = Path(f"{ROOT}{os.pathsep}{package}")
    assert succeed("-c", code, cwd=tmp_path, path=paths).split() == [family, "True", "{'C1'}"]


@pytest.mark.parametrize("name", ["Upper", "with_underscore", "class", "9lives", "a--b", "", "a/b"])
def test_malformed_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match="name"):
        plan("vision", name, folder=tmp_path)


def test_an_unknown_family_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'vision'"):
        plan("visoin", "demo", folder=tmp_path)


def test_a_checkout_is_found_from_below_and_only_there(tmp_path: Path) -> None:
    assert find_checkout(ROOT / "tests" / "contract") == ROOT
    assert find_checkout(tmp_path) is None


def test_imports_are_sorted_by_where_the_room_goes() -> None:
    text = "import a\n\nfrom own.model import M\nfrom passband.errors import E\n\nx = 1\n"
    assert sort_imports(text, "own") == (
        "import a\n\nfrom passband.errors import E\n\nfrom own.model import M\n\nx = 1\n"
    )

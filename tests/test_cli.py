"""The command line: what it prints, how it ends, and what it leaves on disk.

A toy solver, made by `passband new` outside of the source tree, stands in for a system: its claims
are proved in milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from passband import __version__, api, catalog
from passband.cli.app import app, by_system, parse_settings
from passband.cli.doctor import Finding, examine
from passband.cli.group import interrupted
from passband.cli.new import plan
from passband.cli.output import number, plain
from passband.cli.verdicts import state, verdicts
from passband.errors import ConfigError

ROOT = Path(__file__).parents[1]
PROBLEM = """
from passband.pde import Problem
problem = Problem({"x": (0, 1)}, {"xx": 1.0}, source=-2.0, boundary=0.0)
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder on sys.path of an installed package that brings the system `toy-solver`."""
    folder = tmp_path_factory.mktemp("toy")
    plan("pde", "toy-solver", folder=folder).write()
    place = folder / "toy_solver"
    info = place / "toy_solver-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-solver\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[passband.systems]\ntoy-solver = toy_solver\n")
    sys.path.insert(0, str(place))
    catalog.cards.cache_clear()
    yield place
    sys.path.remove(str(place))
    catalog.cards.cache_clear()


@pytest.fixture
def here(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with the toy installed and a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def succeed(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def succeed_json(*arguments: str) -> Any:
    return json.loads(succeed(*arguments, "--json"))


# ---- looking ---------------------------------------------------------------------------------


def test_list_shows_each_system_on_a_line(here: Path) -> None:
    line = next(x for x in succeed("list").splitlines() if "toy-solver" in x)
    assert "pde" in line
    assert "solve" in line
    assert "1 open" in line


def test_list_selects_by_word_family_verb_and_kind(here: Path) -> None:
    ids = lambda *a: {card["id"] for card in succeed_json("list", *a)}  # noqa: E731
    assert "toy-solver" in ids("toy*")
    assert "toy-solver" in ids("Chebyshev", "least", "--family", "pde", "--verb", "solve")
    assert "toy-solver" not in ids("--family", "speech")
    assert "toy-solver" not in ids("--baselines")
    assert ids("no-such-word-anywhere") == set()
    assert "none found" in succeed("list", "no-such-word-anywhere")


def test_info_shows_presets_fields_tasks_and_claims(here: Path) -> None:
    text = succeed("info", "toy-solver")
    for part in ("degree", "highest polynomial degree", "[2, 2000]", "poisson1d-mix", "C1"):
        assert part in text
    facts = succeed_json("info", "toy-solver")
    (field,) = facts["fields"]
    assert (field["name"], field["type"], field["default"]) == ("degree", "int", 96)
    assert facts["presets"]["smoke"] == {"degree": 64}
    assert [claim["id"] for claim in facts["claims"]] == ["C1"]


@pytest.mark.parametrize(
    "command",
    ["list", "info", "train", "apply", "compare", "reproduce", "report", "doctor", "new"],
)
def test_every_command_has_help_with_an_example_and_json(command: str) -> None:
    text = succeed(command, "--help")
    assert f"  passband {command}" in text
    assert "--json" in text


def test_help_and_version() -> None:
    assert succeed("--version").strip() == __version__
    assert "reproduce" in succeed("--help")


# ---- working ---------------------------------------------------------------------------------


def test_train_saves_a_system_that_apply_takes(here: Path) -> None:
    row = succeed_json(
        "train", "toy-solver", "--task", "poisson1d-mix", "--set", "degree=80", "--seed", "3",
    )
    assert row["overrides"] == {"degree": 80}
    assert row["seed"] == 3
    assert row["metrics"]["relative_l2"] < 1e-6
    folder = here / "runs" / row["folder"]
    assert api.load(folder).config.degree == 80
    (here / "problem.py").write_text(PROBLEM)
    written = succeed_json("apply", str(folder), "problem.py", "-o", "solved")["written"]
    assert written
    assert all((here / path).is_file() and path.startswith("solved") for path in written)


def test_train_prints_what_was_measured_and_where_it_lies(here: Path) -> None:
    text = succeed("train", "toy-solver", "--preset", "smoke")
    assert "toy-solver on poisson1d-mix, seed 0" in text  # the first task of its card
    assert "relative_l2" in text
    folder = text.strip().splitlines()[-1].removeprefix("saved in ")
    assert (here / folder / "system" / "config.json").is_file()


def test_resume_gives_the_finished_row_again(here: Path) -> None:
    first = succeed_json("train", "toy-solver")
    assert succeed_json("train", "toy-solver", "--resume")["when"] == first["when"]
    assert succeed_json("train", "toy-solver")["when"] != first["when"]


def test_compare_shows_each_system_and_the_paired_difference(here: Path) -> None:
    arguments = ("compare", "toy-solver", "chebyshev", "--task", "poisson1d-mix", "--seeds", "2",
                 "--processes", "1", "--preset", "smoke")
    text = succeed(*arguments)
    assert "toy-solver" in text
    assert "against toy-solver, paired by seed" in text
    found = succeed_json(*arguments)
    assert [s["system"] for s in found["summaries"]] == ["toy-solver", "chebyshev"]
    assert [s["n"] for s in found["summaries"]] == [2, 2]
    assert "report" not in found and not (here / "runs" / "report.html").exists()
    report = succeed(*arguments, "--html").strip().splitlines()[-1].removeprefix("report: ")
    assert "Relative l2 against seconds" in (here / report).read_text()
    assert succeed_json(*arguments, "--html")["report"] == report


def test_compare_sets_fields_of_all_and_of_one() -> None:
    found = by_system(parse_settings(["width=8", "b.lr=0.1", "b.width=16"]), ["a", "b"])
    assert found == {"a": {"width": 8}, "b": {"width": 16, "lr": 0.1}}
    with pytest.raises(ConfigError, match=r"c\.lr"):
        by_system({"c.lr": 1}, ["a", "b"])


def test_compare_on_own_data(here: Path) -> None:
    (here / "problem.py").write_text(PROBLEM)
    found = succeed_json(
        "compare", "toy-solver", "chebyshev", "--task", "poisson1d-mix", "--seeds", "1",
        "--processes", "1", "--preset", "smoke", "--data", "problem.py",
    )
    assert [row["data"]["path"] for row in found["rows"]] == [str(here / "problem.py")] * 2


def test_reproduce_prints_the_verdict_and_the_report_and_list_remembers(here: Path) -> None:
    text = succeed("reproduce", "toy-solver", "--processes", "1")
    line = next(x for x in text.splitlines() if "C1" in x)
    assert "holds" in line
    report = Path(text.strip().splitlines()[-1].removeprefix("report: "))
    assert (here / report).read_text().lstrip().lower().startswith("<!doctype html>")
    line = next(x for x in succeed("list").splitlines() if "toy-solver" in x)
    assert "1 holds" in line
    assert succeed_json("info", "toy-solver")["claims"][0]["verdict"] == "holds"


def test_smoke_verdicts_stand_for_nothing_else(here: Path) -> None:
    found = succeed_json("reproduce", "toy-solver", "--smoke", "--claims", "C1")
    assert [row["claim"] for row in found["claims"]] == ["C1"]
    assert verdicts(here / "runs") == {}


def test_report_as_html_and_markdown(here: Path) -> None:
    succeed("reproduce", "toy-solver", "--smoke")
    assert succeed_json("report", "runs", "-o", "page.html") == {"report": "page.html"}
    assert (here / "page.html").stat().st_size > 1000
    assert "toy-solver" in succeed("report", "--markdown")
    succeed("report", "--markdown", "-o", "claims.md")
    assert "toy-solver" in (here / "claims.md").read_text()


def test_new_lists_what_it_wrote(here: Path) -> None:
    written = [Path(path) for path in succeed_json("new", "vision", "mine")["written"]]
    assert all(path.is_file() for path in written)
    assert "is there already" in run("new", "vision", "mine").stderr


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "kind", "text"), [
    (("info", "toy-solvr"), "UnknownNameError", "toy-solver"),
    (("train", "toy-solver", "--set", "degre=3"), "UnknownNameError", "degree"),
    (("train", "toy-solver", "--set", "degree=1"), "ConfigError", "degree"),
    (("train", "toy-solver", "--set", "degree=many"), "ConfigError", "degree"),
    (("train", "toy-solver", "--set", "degree"), "ConfigError", "FIELD=VALUE"),
    (("train", "toy-solver", "--preset", "smal"), "UnknownNameError", "small"),
    (("train", "toy-solver", "--task", "poisson1d-mux"), "UnknownNameError", "poisson1d-mix"),
    (("train", "toy-solver", "--budget", "2 apples"), "BudgetError", "2 apples"),
    (("train", "toy-solver", "--model", "."), "ConfigError", "takes no model"),
    (("compare", "toy-solver", "--task", "poisson1d-mix", "--model", "."), "ConfigError",
     "takes no model"),
    (("compare", "toy-solver", "--task", "poisson1d-mix", "--data", "nothing.npz"), "DataError",
     "nothing.npz"),
    (("apply", "toy-solver", "nothing.py"), "DataError", "nothing.py"),
    (("compare", "toy-solver", "--task", "poisson1d-mix", "--engine", "cloud"),
     "UnknownNameError", "cloud"),
    (("reproduce",), "ConfigError", "--all"),
    (("reproduce", "toy-solver", "--claims", "C9"), "UnknownNameError", "C9"),
    (("list", "--family", "visoin"), "UnknownNameError", "vision"),
    (("new", "vision", "Bad Name"), "ScaffoldError", "Bad Name"),
])
def test_a_users_error_is_one_block_and_exit_code_2(
    here: Path, arguments: tuple[str, ...], kind: str, text: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    done = run(*arguments, "--json")
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == kind
    assert text in json.dumps(error)


def test_wrong_arguments_are_json_too(here: Path) -> None:
    done = run("frobnicate", "--json")
    assert done.exit_code == 2
    assert "frobnicate" in json.loads(done.stdout)["error"]["what"]
    done = run("train", "--json")
    assert done.exit_code == 2
    assert "system" in json.loads(done.stdout)["error"]["what"]
    assert run("train", "toy-solver", "--seed", "-1").exit_code == 2


def test_a_defect_shows_message_and_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(api, "train", broken)
    done = run("train", "toy-solver")
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert "error: ZeroDivisionError: by nought" in done.stderr
    done = run("train", "toy-solver", "--json")
    assert done.exit_code == 1
    assert "by nought" in json.loads(done.stdout)["error"]["traceback"]


def test_an_interrupt_says_how_to_go_on(
    here: Path, on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "train", stopped)
    done = run("train", "toy-solver", "--set", "degree=9")
    assert done.exit_code == 130
    assert done.stderr.strip() == (
        "interrupted; resume with: passband train toy-solver --set degree=9 --resume"
    )
    done = run("train", "toy-solver", "--json")
    assert done.exit_code == 130
    assert json.loads(done.stdout)["error"]["type"] == "KeyboardInterrupt"


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")


@pytest.mark.parametrize(("given", "again"), [
    (["train", "a", "--resume"], "train a --resume"),
    (["compare", "a", "b c"], "compare a 'b c'"),
    (["reproduce", "a"], "reproduce a --reuse"),
])
def test_the_command_that_goes_on(
    given: list[str], again: str, on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passband.bench.facts.dirty", lambda: False)
    assert interrupted(given) == f"interrupted; resume with: passband {again}"


def test_where_the_command_is_not_on_the_path_its_place_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "passband").touch()
    assert interrupted(["train", "a"]).endswith(": bin/passband train a --resume")


def test_no_promise_of_reuse_with_uncommitted_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passband.bench.facts.dirty", lambda: True)
    assert "--reuse" not in interrupted(["reproduce", "a"])
    assert "--resume" in interrupted(["train", "a"])


def test_a_warning_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    from passband.errors import PassbandWarning

    def warned(*_: Any, **__: Any) -> list[Path]:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("jitter was raised", PassbandWarning, stacklevel=2)
        return []

    monkeypatch.setattr(api, "apply", warned)
    (here / "problem.py").write_text(PROBLEM)
    assert run("apply", "toy-solver", "problem.py").stderr == "warning: jitter was raised\n"


# ---- as a process ----------------------------------------------------------------------------


def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "passband", *arguments], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, **paths, **environment}, check=False,
    )


def test_json_is_all_of_stdout_and_exit_codes_reach_the_shell(tmp_path: Path) -> None:
    done = process("list", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert isinstance(json.loads(done.stdout), list)
    done = process("info", "no-such-system", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_a_checkpoint_and_one_line(tmp_path: Path) -> None:
    code = (  # a test runner in the background ignores SIGINT, and its children inherit that
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from passband.cli import main; main()"
    )
    arguments = ["train", "pinn", "--task", "poisson1d-mix", "--budget", "1000ksteps"]
    running = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        while running.poll() is None and not steps_were_taken(tmp_path / "runs"):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, complaint = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 130, complaint
    assert out == ""
    (line,) = complaint.splitlines()
    assert line.startswith("interrupted; resume with: ")
    assert line.endswith(f"passband {' '.join(arguments)} --resume")
    assert list(tmp_path.glob("runs/cells/*/checkpoint"))
    assert not (tmp_path / "runs" / "results.jsonl").exists()


def steps_were_taken(runs: Path) -> bool:
    return any(path.stat().st_size for path in runs.glob("cells/*/curves.jsonl"))


def test_doctor_finds_what_is_broken(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = process("doctor", "--json", cwd=tmp_path, PASSBAND_CACHE=str(blocked))
    assert done.returncode == 1
    found = {f["name"]: f for f in json.loads(done.stdout)["findings"]}
    assert found["cache"]["state"] == "broken"
    assert "PASSBAND_CACHE" in found["cache"]["mend"]
    assert found["torch"]["state"] == "ok"


def test_doctor_names_absent_extras_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from passband.cli import doctor

    lines = ["numpy>=1.26", 'no-such-package>=2; extra == "heavy"', "ray>=2; extra == 'ray'",
             "other-absent-one[x]>=1; python_version > '3'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    found = {f.name: f for f in [*doctor.core(), *doctor.extras()]}
    assert found["numpy"].state == "ok"
    assert found["extra heavy"].state == "absent"
    assert found["extra heavy"].mend == "pip install 'passband[heavy]'"
    assert found["other-absent-one"].state == "broken"


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from passband.cli import doctor

    def odd() -> Iterator[Finding]:
        yield Finding("first", "ok", "")
        raise RuntimeError("odd")

    monkeypatch.setattr(doctor, "CHECKS", (odd, odd))
    assert [(f.name, f.state) for f in examine()] == [("first", "ok"), ("odd", "broken")] * 2


# ---- small parts -----------------------------------------------------------------------------


def test_settings_are_json_or_text() -> None:
    given = ["a=1", "b=true", "c=[1, 2]", "d=gm", "e=x=y", "f=1e-3", 'g="1"', "h=null", "i="]
    assert parse_settings(given) == {
        "a": 1, "b": True, "c": [1, 2], "d": "gm", "e": "x=y", "f": 1e-3, "g": "1", "h": None,
        "i": "",
    }
    for wrong in ("a", "=1", ""):
        with pytest.raises(ConfigError):
            parse_settings([wrong])


def test_plain_values_are_strict_json() -> None:
    import numpy as np

    value = {"a": np.float64("nan"), "b": np.arange(2), 3: (Path("x"), np.int64(4)), "c": {5}}
    assert plain(value) == {"a": None, "b": [0, 1], "3": ["x", 4], "c": [5]}
    assert number(float("inf")) == "inf"


def test_the_newest_full_verdict_counts(tmp_path: Path) -> None:
    def row(claim: str, verdict: str, when: str, scale: str = "full") -> str:
        return json.dumps({
            "system": "a", "claim": claim, "when": when, "scale": scale,
            "evidence": {"verdict": verdict},
        })

    (tmp_path / "claims.jsonl").write_text("\n".join([
        row("C1", "holds", "2"), row("C1", "fails", "1"), row("C2", "not shown", "1"),
        row("C1", "fails", "3", "smoke"), "{broken", '{"system": "a"}',
    ]))
    assert verdicts(tmp_path) == {"a": {"C1": "holds", "C2": "not shown"}}
    assert verdicts(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(("found", "text"), [
    ({}, "3 open"),
    ({"C1": "holds"}, "1 holds, 2 open"),
    ({"C1": "holds", "C2": "holds", "C3": "not shown"}, "2 hold, 1 not shown"),
    ({"C1": "fails", "C2": "fails", "C3": "inconclusive"}, "2 fail, 1 inconclusive"),
])
def test_the_state_of_claims_in_words(found: dict[str, str], text: str) -> None:
    assert state(3, found) == text

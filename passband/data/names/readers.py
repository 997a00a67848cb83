"""Readers of the users' own labelled names.

    DIR/NAME_vulnerable.txt, DIR/NAME_benign.txt    a name on each line; one pair a project
    FILE.csv                                        columns name, label[, project]
    FILE.hdf5                                       VDISC: functionSource, and columns CWE-...
    FILE.zip                                        C files; a CVE in a file's name: vulnerable

>>> _ = Path("one_benign.txt").write_text("get_size\\nset_size;\\n")
>>> _ = Path("one_vulnerable.txt").write_text("copy_buffer\\n")
>>> named = read(".")
>>> named.names, named.projects
(('get_size', 'set_size', 'copy_buffer'), ('one', 'one', 'one'))
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from passband.data.names.functions import functions_of
from passband.data.names.named import Named
from passband.errors import DataError, MissingExtraError

VULNERABLE, BENIGN = "_vulnerable.txt", "_benign.txt"
_LABELS = {
    **dict.fromkeys(("1", "true", "vulnerable", "yes", "bad"), True),
    **dict.fromkeys(("0", "false", "benign", "no", "good"), False),
}
_CVE = re.compile(r"CVE[-_]\d{4}", re.IGNORECASE)
_BLOCK = 10_000  # functions of an HDF5 file at a time


def read(path: str | Path, *, strip_signatures: bool = False) -> Named:
    """Labelled names of a folder or file, by its kind; see the head of this module.

    Raises `DataError` for what can't be read, with the file and line.
    """
    path = Path(path)
    if path.is_dir():
        return read_lists(path, strip_signatures=strip_signatures)
    reader = _READERS.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise DataError(
            f"{path} holds no labelled names",
            expected=f"a folder with NAME{VULNERABLE} and NAME{BENIGN}, or a file "
            + ", ".join(_READERS),
        )
    return reader(path, strip_signatures)


def lines(path: Path) -> list[str]:
    """The names of a text file, one on each line; a semicolon at the end is taken off."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} line {number} is not UTF-8", expected="a text file of names",
        ) from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}", expected="a text file") from None
    cleaned = (line.replace(";", "").strip() for line in text.split("\n"))
    return [line for line in cleaned if line]


def read_lists(folder: Path, *, strip_signatures: bool = False) -> Named:
    """Every pair of lists in a folder; of each project, benign names first."""
    names: list[str] = []
    labels: list[bool] = []
    projects: list[str] = []
    found = sorted(folder.glob(f"*{VULNERABLE}"))
    for vulnerable in found:
        project = vulnerable.name.removesuffix(VULNERABLE)
        benign = vulnerable.with_name(project + BENIGN)
        if not benign.exists():
            raise DataError(f"{benign} is missing", expected=f"a list beside {vulnerable.name}")
        for path, label in ((benign, False), (vulnerable, True)):
            here = lines(path)
            names += here
            labels += [label] * len(here)
            projects += [project] * len(here)
    if not found:
        raise DataError(
            f"{folder} has no file *{VULNERABLE}",
            expected=f"pairs NAME{VULNERABLE}, NAME{BENIGN}, one name on each line",
        )
    return Named.labelled(names, labels, projects, strip_signatures=strip_signatures)


def _table(path: Path, strip: bool) -> Named:
    names: list[str] = []
    labels: list[bool] = []
    projects: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            missing = {"name", "label"} - set(table.fieldnames or ())
            if missing:
                raise DataError(
                    f"{path} has no column {sorted(missing)[0]!r}",
                    expected="columns name, label and optionally project",
                )
            for row in table:
                label = _LABELS.get((row["label"] or "").strip().lower())
                if label is None:
                    raise DataError(
                        f"{path} line {table.line_num}: label {row['label']!r}",
                        expected="1 or 0 (vulnerable or benign)",
                    )
                names.append((row["name"] or "").strip())
                labels.append(label)
                projects += [row["project"] or ""] if "project" in row else []
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason}", expected="a CSV file") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}", expected="a CSV file") from None
    return Named.labelled(names, labels, projects, strip_signatures=strip)


def _archive(path: Path, strip: bool) -> Named:
    """C and C++ files of a ZIP; the project is the first folder of a file's path."""
    names: list[str] = []
    labels: list[bool] = []
    projects: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for inside in sorted(archive.namelist()):
                if Path(inside).suffix not in (".c", ".cc", ".cpp", ".h"):
                    continue
                source = archive.read(inside).decode("utf-8", errors="replace")
                found = [function.name for function in functions_of(source, Path(inside).suffix)]
                names += found
                labels += [bool(_CVE.search(Path(inside).name))] * len(found)
                projects += [Path(inside).parts[0]] * len(found)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} can't be read: {error}", expected="a ZIP file") from None
    return Named.labelled(names, labels, projects, strip_signatures=strip)


def _vdisc(path: Path, strip: bool) -> Named:
    """Draper VDISC: a function is vulnerable when any of its CWE columns says so."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise MissingExtraError("h5py", "retrieval") from None
    names: list[str] = []
    labels: list[bool] = []
    with h5py.File(path, "r") as file:
        columns = [name for name in file if name.upper().startswith("CWE")]
        if "functionSource" not in file or not columns:
            raise DataError(
                f"{path} has {', '.join(file)}", expected="functionSource and columns CWE-...",
            )
        sources = file["functionSource"]
        for start in range(0, len(sources), _BLOCK):
            block = slice(start, start + _BLOCK)
            bad = [any(row) for row in zip(*(file[c][block] for c in columns), strict=True)]
            for source, label in zip(sources[block], bad, strict=True):
                text = source.decode("utf-8", "replace") if isinstance(source, bytes) else source
                found = functions_of(text, ".c")
                if found:
                    names.append(found[0].name)
                    labels.append(label)
    return Named.labelled(names, labels, strip_signatures=strip)


_READERS: dict[str, Callable[[Path, bool], Named]] = {
    ".csv": _table, ".zip": _archive, ".h5": _vdisc, ".hdf5": _vdisc,
}


def unlabelled(path: str | Path) -> list[str]:
    """Names to be looked at: one on each line of a text file, or a CSV's column `name`."""
    path = Path(path)
    if path.suffix.lower() != ".csv":
        return lines(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        table: Iterable[dict[str, str]] = csv.DictReader(file)
        names = [row.get("name") for row in table]
    if None in names or not names:
        raise DataError(f"{path} has no column 'name'", expected="a CSV with one")
    return [name.strip() for name in names if name and name.strip()]

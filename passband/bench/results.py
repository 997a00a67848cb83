"""Results: one JSON row per finished cell, appended whole or not at all.

>>> file = ResultsFile(Path("runs") / RESULTS)
>>> file.append(row)
>>> file.latest()[row.key].metrics
{'relative_l2': 3.1e-07}

A file is JSON Lines in UTF-8, one writer at a time (a lock file beside it). A row is one write to a
file opened for appending, then fsync. What a kill or a power cut tears off is moved to
`<name>.damaged` by the next writer and skipped by readers, so a file is readable at any moment.
Numbers are strict JSON: what is not finite is written as null.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from passband.bench.layout import (
    CALIBRATION,
    CELLS,
    CHECKPOINT,
    CLAIMS,
    CURVES,
    RESULTS,
    RUNNING,
    SYSTEM,
)
from passband.errors import PassbandWarning, ResultsError

__all__ = [
    "CALIBRATION", "CELLS", "CHECKPOINT", "CLAIMS", "CURVES", "RESULTS", "RUNNING", "SYSTEM",
    "Damage", "Result", "ResultsFile", "Row", "RowsFile", "decode", "encode", "locked",
    "timestamp", "write_atomic", "write_whole",
]

LOCK_SECONDS = 60.0  # a row is written in milliseconds: a longer wait means a stuck writer

TIMED = ("seconds", "peak_memory", "peak_gpu_memory", "machine", "when")


@dataclass(frozen=True)
class Result:
    """What one cell (system x preset x task x seed) gave and cost.

    seconds       {"fit": s, "evaluate": s}; time spent on looking at the test error is excluded
    peak_memory   bytes of the process above its level when the system was created (the data of
                  the task are there by then), over fit and evaluate
    spent         what `fit` returned, and {"seconds": s}
    curves        {"seconds": [...], "step": [...], "<name>": [...]}: error against time and more;
                  lists of one length, NaN where a row has no such value
    artifacts     list of `Artifact` as dicts; their files lie in `folder`
    folder        relative to the runs folder
    data          the user's own data as {"path": ..., "hash": ...}, own model as {"model": ...,
                  "model_hash": ...}; empty for what is embedded
    """

    key: str
    system: str
    preset: str
    overrides: dict[str, Any]
    task: str
    task_version: int
    size: str
    seed: int
    metrics: dict[str, float]
    seconds: dict[str, float]
    peak_memory: int
    parameters: int
    file_bytes: int
    budget: dict[str, Any]
    spent: dict[str, Any]
    selected: str
    versions: dict[str, str]
    code_hash: str
    dirty: bool
    machine: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    folder: str = ""
    when: str = ""
    error: str = ""  # a cell that raised: the text; its metrics are empty
    data: dict[str, str] = field(default_factory=dict)
    peak_gpu_memory: int = 0  # bytes allocated through torch

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def untimed(self) -> dict[str, Any]:
        """All that has to be equal when the same cell runs again, on any engine, resumed or not.

        >>> row.untimed() == run_cell(cell, runs).untimed()
        True
        """
        facts: dict[str, Any] = _plain(self.to_json())
        for name in TIMED:
            del facts[name]
        for group in ("spent", "metrics"):  # step_seconds and the like are measured times too
            facts[group] = {n: v for n, v in facts[group].items() if not n.endswith("seconds")}
        facts["curves"].pop("seconds", None)
        return facts


class Row(Protocol):
    """What a file of rows needs to know about one: its identity, its time and its JSON form."""

    @property
    def key(self) -> str: ...
    @property
    def when(self) -> str: ...
    def to_json(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Damage:
    """A line that could not be read, by number from 1, and why."""

    line: int
    reason: str
    text: str


class RowsFile(Generic[R]):
    """An append-only file of rows of one dataclass."""

    def __init__(self, path: str | Path, kind: type[R]) -> None:
        self.path, self.kind = Path(path), kind

    # ---- read ----------------------------------------------------------------------------

    def scan(self) -> tuple[list[R], list[Damage]]:
        """Every readable row in file order, and what could not be read. A missing file is empty."""
        rows, damage = [], []
        for number, line in enumerate(self._bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                rows.append(decode(line, self.kind))
            except ValueError as error:
                reason = str(error).splitlines()[0]
                damage.append(Damage(number, reason, line[:200].decode("utf-8", "replace")))
        return rows, damage

    def read(self) -> list[R]:
        """Every readable row; damaged lines are skipped with one warning."""
        rows, damage = self.scan()
        if damage:
            warnings.warn(
                f"{self.path} has {len(damage)} damaged line(s), skipped; the first is line "
                f"{damage[0].line}: {damage[0].reason}", PassbandWarning, stacklevel=2,
            )
        return rows

    def latest(self) -> dict[str, R]:
        """The newest row of each key; of two at the same moment the later in the file."""
        found: dict[str, R] = {}
        for row in self.read():
            if row.key not in found or row.when >= found[row.key].when:
                found[row.key] = row
        return found

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ResultsError(
                f"{self.path} can't be read: {error.strerror}", expected="a readable file",
                mend="check the path and its permissions",
            ) from None

    # ---- write ---------------------------------------------------------------------------

    def append(self, row: R) -> R:
        """Add one row; returns it as it will be read. Raises ResultsError, losing nothing."""
        return self.extend([row])[0]

    def extend(self, rows: Sequence[R]) -> list[R]:
        lines = [encode(row) for row in rows]
        payload = b"".join(lines)
        try:
            self._write(payload)
        except OSError as error:
            place = _keep(payload)
            raise ResultsError(
                f"{self.path} can't be written: {error.strerror or error}",
                expected="a writable folder with free space",
                mend=f"the new rows are kept in {place}: make room or mend the permissions, then "
                f"`cat {place} >> {self.path}`" if place else
                f"make room or mend the permissions, then append: {payload.decode()}",
            ) from error
        return [decode(line, self.kind) for line in lines]

    def merge(self, files: Iterable[str | Path]) -> int:
        """Add the rows of files from other machines, oldest first; returns how many were new.

        A row that is here already (same key, time and content) is not added again.
        """
        known = {encode(row) for row in self.read()}
        fresh: dict[bytes, R] = {}
        for path in files:
            if not Path(path).is_file():
                raise ResultsError(f"{path} is no file", expected="a file of rows to merge")
            for row in RowsFile(path, self.kind).read():
                line = encode(row)
                if line not in known:
                    fresh[line] = row
        if fresh:
            self.extend(sorted(fresh.values(), key=lambda row: row.when))
        return len(fresh)

    def _write(self, payload: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_SECONDS):
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                mended = self._mend_tail(handle)
                size = os.fstat(handle).st_size
                try:
                    write_whole(handle, payload)
                except OSError:
                    os.ftruncate(handle, size)  # a full disk takes a part of the row: take it back
                    raise
            finally:
                os.close(handle)
        if mended:  # said last: a warning that is turned into an error must not cost a row
            warnings.warn(mended, PassbandWarning, stacklevel=4)

    def _mend_tail(self, handle: int) -> str:
        """Give a last line without its end a newline if it is whole, else move it aside."""
        size = os.fstat(handle).st_size
        if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
            return ""
        text = self.path.read_bytes()
        start = text.rfind(b"\n") + 1
        tail = text[start:]
        try:
            decode(tail, self.kind)
        except ValueError:
            damaged = self.path.with_name(f"{self.path.name}.damaged")
            aside = os.open(damaged, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                write_whole(aside, tail + b"\n")
            finally:
                os.close(aside)
            os.ftruncate(handle, start)
            return (
                f"the last line of {self.path} was cut off by a kill; its {len(tail)} bytes were "
                f"moved to {damaged}"
            )
        write_whole(handle, b"\n")
        return ""


class ResultsFile(RowsFile[Result]):
    """The rows of cells: `ResultsFile(runs / RESULTS)`."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, Result)


# ---- JSON ------------------------------------------------------------------------------------


def encode(row: Row) -> bytes:
    """One line of strict JSON."""
    text = json.dumps(_plain(row.to_json()), allow_nan=False, ensure_ascii=False)
    return text.encode() + b"\n"


def decode(line: bytes, kind: type[R]) -> R:
    """The row of a line; ValueError says why it is none. Unknown fields of newer versions go."""
    facts = json.loads(line)  # JSONDecodeError and UnicodeDecodeError are ValueErrors
    if isinstance(facts, dict):
        if isinstance(facts.get("curves"), dict):
            facts["curves"] = {
                name: [_nan_for_none(v) for v in column]
                for name, column in facts["curves"].items() if isinstance(column, list)
            }
        for name in ("metrics", "seconds"):
            if isinstance(facts.get(name), dict):
                facts[name] = {n: _nan_for_none(v) for n, v in facts[name].items()}
    row: R = _adapter(kind).validate_python(facts)  # its ValidationError is a ValueError
    return row


def _nan_for_none(value: Any) -> Any:
    return math.nan if value is None else value


@cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _plain(value: Any) -> Any:
    """Mappings, sequences, arrays and scalars of any library as JSON values."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors
        return _plain(value.tolist())
    return str(value)


# ---- the file system -------------------------------------------------------------------------


def write_whole(handle: int, payload: bytes) -> None:
    """Write all bytes (one call, unless the system takes fewer) and have them on the disk."""
    rest = memoryview(payload)
    while rest:
        rest = rest[os.write(handle, rest):]
    os.fsync(handle)


def write_atomic(path: Path, payload: bytes) -> None:
    """Write a small file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp: its files are private, and reports are there to be shared.
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{time.time_ns()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_whole(handle, payload)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, *, timeout: float, busy: str = "") -> Iterator[None]:
    """Hold a lock file; ResultsError when another process keeps it beyond `timeout` seconds."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise ResultsError(
            busy or f"{path} is held by another process for too long",
            expected="one writer at a time", mend="wait for the other process, or end it",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _keep(payload: bytes) -> Path | None:
    """Save rows that could not be written where they belong; None when that fails as well."""
    name = f"passband-rows-{hashlib.blake2b(payload, digest_size=6).hexdigest()}.jsonl"
    place = Path(tempfile.gettempdir()) / name
    try:
        write_atomic(place, payload)
    except OSError:
        return None
    return place


def timestamp() -> str:
    """UTC with microseconds: sorts as text, on all machines."""
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + (
        f".{now // 1000 % 10**6:06d}Z"
    )

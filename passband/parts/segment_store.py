"""A folder of arrays that grows by whole segments, and is whole at every moment.

>>> store = SegmentStore.create("vectors", kind="example")
>>> with store.segment() as new:
...     new.save("numbers", np.arange(3))
>>> store.commit([new], facts={"width": 1})
>>> again = SegmentStore.open("vectors", kind="example")
>>> [again.arrays(name)["numbers"].tolist() for name in again.segments], again.facts
([[0, 1, 2]], {'width': 1})

    vectors/manifest.json         what belongs to the store: the only file that is ever replaced
    vectors/<segment>/*.npy       memory-mapped; written once, never changed

A segment is written under a name that no manifest knows; `commit` replaces the manifest in one
step. A process killed before that step leaves what was there, one killed after it what is new;
what it left behind is removed by the next `commit`. One process writes at a time (a lock file);
readers need no lock.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from passband.errors import CheckpointError, DataError

MANIFEST = "manifest.json"
LOCK = ".lock"
SEGMENT = "segment-"
VERSION = 1
PATIENCE = 600.0  # seconds to wait for another process that writes
Array = NDArray[Any]


class SegmentStore:
    """Segments of arrays and a few facts, as the manifest has them.

    kind      what the arrays are of: opening another kind is an error
    facts     JSON that belongs to all segments
    segments  name -> facts of each, in order
    """

    def __init__(self, folder: Path, kind: str, manifest: Mapping[str, Any]) -> None:
        self.folder, self.kind = folder, kind
        self._lock: Any = None
        self._take(manifest)

    @classmethod
    def create(cls, folder: str | Path, kind: str) -> SegmentStore:
        """A store without segments. What the folder holds stays readable until `commit`.

        Raises `DataError` where the folder is there and holds anything but a store.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file", expected="a folder, or a new name")
        if folder.is_dir() and not (folder / MANIFEST).exists():
            # A first build that was killed leaves its lock and its segment.
            names = sorted(p.name for p in folder.iterdir())
            others = [name for name in names if not name.startswith((".", SEGMENT))]
            if others:
                raise DataError(
                    f"{folder} holds {', '.join(others[:3])} and no index",
                    expected="an empty folder, a new one, or that of an index",
                )
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, kind, {})

    @classmethod
    def open(cls, folder: str | Path, kind: str | None = None) -> SegmentStore:
        """The store in a folder; `CheckpointError` where there is none, or another kind's."""
        folder = Path(folder)
        manifest = _manifest(folder)
        if kind is not None and manifest["kind"] != kind:
            raise CheckpointError(
                f"{folder} holds vectors of the kind {manifest['kind']!r}", expected=kind
            )
        return cls(folder, manifest["kind"], manifest)

    def _take(self, manifest: Mapping[str, Any]) -> None:
        self.facts: dict[str, Any] = dict(manifest.get("facts", {}))
        self.segments: dict[str, dict[str, Any]] = {
            each["name"]: each["facts"] for each in manifest.get("segments", ())
        }
        self._files = {each["name"]: each["files"] for each in manifest.get("segments", ())}

    def arrays(self, segment: str) -> dict[str, Array]:
        """The arrays of a segment, mapped into memory; writing to them changes no file.

        Raises `CheckpointError` where a file is missing or of another length than was written.
        """
        return {
            name: _mapped(self.folder / segment / f"{name}.npy", size)
            for name, size in self._files[segment].items()
        }

    @contextmanager
    def segment(self, facts: Mapping[str, Any] | None = None) -> Iterator[NewSegment]:
        """A new segment to write arrays to; on disk when the block ends, and not yet in the store.

        An error removes it.
        """
        name = f"{SEGMENT}{secrets.token_hex(6)}"
        new = NewSegment(self.folder / name, dict(facts or {}))
        new.folder.mkdir(parents=True)
        try:
            yield new
            new.close()
        except BaseException:
            shutil.rmtree(new.folder, ignore_errors=True)
            raise

    def commit(
        self, new: Sequence[NewSegment], *, facts: Mapping[str, Any] | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        """Replace the manifest: segments to keep, then the new ones. The others are removed."""
        names = {each.folder.name: each for each in new}
        segments = [
            {"name": name, "facts": self.segments[name], "files": self._files[name]}
            for name in keep
        ] + [{"name": n, "facts": each.facts, "files": each.sizes} for n, each in names.items()]
        manifest = {
            "format": "passband vectors", "version": VERSION, "kind": self.kind,
            "facts": self.facts if facts is None else dict(facts), "segments": segments,
        }
        write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        self._take(manifest)
        self.clean()

    def clean(self) -> None:
        """Remove what no manifest names: segments that were replaced or never finished."""
        for path in self.folder.iterdir():
            if path.is_dir() and path.name.startswith(SEGMENT) and path.name not in self.segments:
                # Some systems forbid it while a reader has it mapped: it goes the next time.
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The right to write; waits for another process, then sees what that has written."""
        from filelock import FileLock, Timeout

        if self._lock is None:  # one for the store: it may be taken again by who has it
            self._lock = FileLock(self.folder / LOCK, timeout=PATIENCE)
        try:
            self._lock.acquire()
        except Timeout:
            raise DataError(
                f"another process has been writing to {self.folder} for {PATIENCE:g} s",
                mend="wait for it, or write to another folder",
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    def reload(self) -> bool:
        """Read the manifest again; whether another process had replaced it."""
        before = list(self.segments)
        self._take(_manifest(self.folder))
        return before != list(self.segments)


class NewSegment:
    """Arrays on their way to disk: `save` whole ones, `stream` those that come in pieces."""

    def __init__(self, folder: Path, facts: dict[str, Any], durable: bool = True) -> None:
        self.folder, self.facts, self.durable = folder, facts, durable
        self.sizes: dict[str, int] = {}

    def save(self, name: str, array: Array) -> None:
        with self.stream(name, array.dtype, array.shape) as stream:
            stream.write(array)

    @contextmanager
    def stream(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Iterator[ArrayStream]:
        """Write an array of known shape in pieces along its first axis; memory is the caller's."""
        path = self.folder / f"{name}.npy"
        with path.open("wb") as file:
            stream = ArrayStream(file, np.dtype(dtype), shape)
            yield stream
            stream.finish()
            if self.durable:
                _sync(file)
        self.sizes[name] = path.stat().st_size

    def close(self) -> None:
        _sync_folder(self.folder)

    def arrays(self) -> dict[str, Array]:
        return {n: _mapped(self.folder / f"{n}.npy", size) for n, size in self.sizes.items()}


class ArrayStream:
    """An .npy file whose header is written first."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.file, self.dtype, self.shape, self.rows = file, dtype, shape, 0
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False,
                  "shape": tuple(int(n) for n in shape)}
        np.lib.format.write_array_header_1_0(file, header)

    def write(self, piece: Array) -> None:
        self.rows += len(piece)
        # Not tofile: it writes past Python's buffer, in which the header may still be.
        self.file.write(np.ascontiguousarray(piece, dtype=self.dtype).data)

    def finish(self) -> None:
        if self.rows != self.shape[0]:
            raise DataError(f"{self.rows} rows were written", expected=f"{self.shape[0]}")


def write_atomic(path: Path, payload: bytes) -> None:
    """Replace a small file: whoever reads it sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            file.write(payload)
            _sync(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # folders can't be opened elsewhere
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mapped(path: Path, size: int) -> Array:
    try:
        here = path.stat().st_size
        if here != size:
            raise CheckpointError(
                f"{path} has {here} bytes", expected=f"{size}", mend="build the index again"
            )
        if np.prod(_shape(path)) == 0:  # nothing to map
            return np.asarray(np.load(path, allow_pickle=False))
        # Copy on write, not read only: compiled loops would need a second version for the latter.
        return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} can't be read: {error}", expected="a file of the index",
            mend="build the index again",
        ) from None


def _shape(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        return np.lib.format.read_array_header_1_0(file)[0]


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest.get("format") != "passband vectors" or manifest["version"] > VERSION:
            raise CheckpointError(
                f"{path} is of the format {manifest.get('format')!r}, version "
                f"{manifest.get('version')}", expected=f"'passband vectors', up to {VERSION}",
                mend="build the index again with this version",
            )
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no index in {folder}", expected=f"a folder with {MANIFEST}"
        ) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} can't be read: {error}", expected="the manifest of an index",
            mend="build the index again",
        ) from None
    return dict(manifest)

"""What takes long to make is made once: files in the user's cache folder, keyed by their recipe.

>>> def make(path):
...     _ = path.write_text("made once")
>>> first = stored("examples", {"recipe": 1}, make, suffix=".txt")
>>> first.read_text(), stored("examples", {"recipe": 1}, make, suffix=".txt") == first
('made once', True)

The name of a file is the hash of its key, so that another recipe is another file and nothing is
ever changed in place. Two processes that ask at once make it once: the second waits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

# Longest wait for another process that makes the same file. A process that dies gives its lock up.
PATIENCE = 3600.0


def cache_folder() -> Path:
    """Where generated and pretrained things are kept: PASSBAND_CACHE, or the user's cache."""
    import platformdirs

    chosen = os.environ.get("PASSBAND_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("passband"))


def digest(parts: Iterable[str | bytes]) -> str:
    """16 hex digits that say whether two sequences of texts are the same.

    >>> digest(["ab", "c"]) == digest(["ab", "c"]), digest(["ab", "c"]) == digest(["a", "bc"])
    (True, False)
    """
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()


def stored(
    kind: str, key: Mapping[str, Any], make: Callable[[Path], None], *, suffix: str = ""
) -> Path:
    """Path of the file that `make(path)` writes; made only where it is not there yet.

    kind   folder inside the cache
    key    JSON: all that the content depends on
    make   writes to the path it is given, a temporary name that is moved when it returns
    Raises `DataError` when the folder can't be written.
    """
    from filelock import FileLock, Timeout

    folder = cache_folder() / kind
    path = folder / f"{digest([json.dumps(key, sort_keys=True)])}{suffix}"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=PATIENCE):
            if not path.exists():
                _make(path, make)
    except Timeout:
        raise DataError(
            f"another process has been making {path} for an hour",
            expected="one that ends", mend="end it, then start again",
        ) from None
    except OSError as error:
        raise DataError(
            f"the cache folder {folder} can't be written: {error}",
            expected="a writable folder with room", mend="set PASSBAND_CACHE to a writable folder",
        ) from None
    return path


def stored_json(kind: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """The JSON value that `make()` gives, from the cache where it is there and whole."""

    def write(path: Path) -> None:
        path.write_text(json.dumps(make()), encoding="utf-8")

    return _whole(
        lambda: stored(kind, key, write, suffix=".json"),
        lambda path: json.loads(path.read_text(encoding="utf-8")),
    )


def stored_tensors(
    kind: str, key: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The named tensors that `make()` gives, as one safetensors file with the key inside."""
    from safetensors.torch import load_file, save_file

    def write(path: Path) -> None:
        tensors = {name: t.detach().contiguous() for name, t in make().items()}
        save_file(tensors, path, metadata={"key": json.dumps(key, sort_keys=True)})

    return _whole(lambda: stored(kind, key, write, suffix=".safetensors"), load_file)


def _make(path: Path, make: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make(temporary)
        temporary.chmod(0o644)  # safetensors writes private files; a cache may be shared
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _whole(get: Callable[[], Path], read: Callable[[Path], Any]) -> Any:
    """What is read; a file that a full disk or another program has damaged is made again."""
    from safetensors import SafetensorError

    path = get()
    try:
        return read(path)
    except (SafetensorError, ValueError):
        path.unlink(missing_ok=True)
    return read(get())

"""TOML files parsed once: what they gave is kept as JSON beside Python's own compiled files.

>>> cache = CardCache()
>>> cache.read(Path("passband/pde/gp_hm/card.toml"))["id"]
'gp-hm'
>>> cache.close()

Reading a card as JSON takes a tenth of parsing its TOML, which for a hundred cards is most of what
`passband list` has. As with compiled files, an entry counts while the file's size and time of
change are those it was made from, and where nothing can be written nothing is kept.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

Entry = list[Any]  # time of change in ns, size in bytes, content


def place() -> Path:
    """`__pycache__/cards.cpython-311.json`, or where PYTHONPYCACHEPREFIX says."""
    compiled = importlib.util.cache_from_source(str(Path(__file__).with_name("cards.py")))
    return Path(compiled).with_suffix(".json")


class CardCache:
    """Reads TOML files; `close` keeps what was read for the next process."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or place()
        self._known = _load(self.file)
        self._used: dict[str, Entry] = {}

    def read(self, path: Path) -> dict[str, Any]:
        """The content of a file; raises OSError, UnicodeDecodeError and TOMLDecodeError."""
        status = path.stat()
        stamp = [status.st_mtime_ns, status.st_size]
        entry = self._known.get(str(path))
        if not _whole(entry) or entry[:2] != stamp:
            import tomllib

            entry = [*stamp, tomllib.loads(path.read_text(encoding="utf-8"))]
        self._used[str(path)] = entry
        content: dict[str, Any] = dict(entry[2])  # the caller may take it apart
        return content

    def close(self) -> None:
        """Write the cache anew if it has changed."""
        if self._used == self._known or sys.dont_write_bytecode:
            return
        temporary = self.file.with_name(f".{self.file.name}-{os.getpid()}")
        # A folder of another user, a full disk, a date in a card: the next process parses again.
        with suppress(OSError, TypeError):
            text = json.dumps(self._used)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.file)


def _whole(entry: Entry | None) -> TypeGuard[Entry]:
    return isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], dict)


def _load(file: Path) -> dict[str, Entry]:
    """What was kept; nothing if there is none, or if it can't be read."""
    with suppress(OSError, ValueError):
        known = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}

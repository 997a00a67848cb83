"""What names of files tell: who talks, and which files are held out.

>>> files = [Path(f"{digit}_{name}_{i}.wav")
...          for digit in range(5) for name in ("ann", "bob") for i in range(2)]
>>> sorted(set(talkers_of(files, Path("."))))
['ann', 'bob']
>>> [len(piece) for piece in held_out([file.name for file in files], 2)]
[16, 2, 2]
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

SHARE = 0.1  # of all, in each part that is held out
ENOUGH = 10  # talkers from which on whole talkers are held out


def talkers_of(files: Sequence[Path], root: Path) -> tuple[str, ...]:
    """The talker of every file.

    The first folder below `root`, where there are several; else the part of the name, between
    underscores or dashes, that repeats: words before numbers. Else every file is its own talker.
    """
    below = [relative(file, root) for file in files]
    folders = [path.parts[0] for path in below if len(path.parts) > 1]
    if len(folders) == len(files) and len(set(folders)) > 1:
        return tuple(folders)
    words = [re.split(r"[_\-]+", file.stem) for file in files]
    if len({len(split) for split in words}) == 1:
        columns = list(zip(*words, strict=True))
        repeating = [column for column in columns if 2 <= len(set(column)) <= len(files) // 2]
        spoken = [c for c in repeating if not all(word.isdigit() for word in c)]
        if repeating:
            return (spoken or repeating)[0]
    return tuple(path.as_posix() for path in below)


def held_out(
    names: Sequence[str], parts: int, talkers: Sequence[str] | None = None
) -> list[list[int]]:
    """Indices of training and of each held-out part, a tenth each and at least one.

    The same for the same names in any order and any place. With ten talkers or more, all that one
    talker says is in one part. With fewer, every talker is in all parts, as far as recordings go.
    """
    own = list(names if talkers is None else talkers)
    members: dict[str, list[str]] = {}
    for name, talker in zip(names, own, strict=True):
        members.setdefault(talker, []).append(name)
    if len(members) >= ENOUGH:
        groups, pools = own, [list(members)]
    else:
        groups = list(names)
        pools = [pool for pool in members.values() if len(pool) > parts] or [groups]
    part_of: dict[str, int] = {}
    for pool in pools:
        order = sorted(pool, key=_hash)
        each = max(1, round(SHARE * len(order)))
        part_of |= {name: k + 1 for k in range(parts) for name in order[k * each:(k + 1) * each]}
    out: list[list[int]] = [[] for _ in range(parts + 1)]
    for i, name in enumerate(groups):
        out[part_of.get(name, 0)].append(i)
    return out


def relative(file: Path, root: Path) -> Path:
    """The path below `root`, or all of it."""
    return file.relative_to(root) if file.is_relative_to(root) else file


def _hash(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()

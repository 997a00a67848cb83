"""Users' own labelled data: folders of images, arrays and tables.

    DIR/CLASS/a.png                          one folder a class
    DIR/DOMAIN/CLASS/a.png                   domains around them (as DomainBed has its data)
    DIR/train/CLASS/a.png, DIR/test/CLASS/a.png   a split of one's own (valid or val too)
    data.npz                                 x [N, ...], y [N]; optional domain [N], truth [N]
    images.csv                               columns path, label; optional domain, truth
    rows.csv                                 columns x0, x1, ..., label; optional domain, truth

>>> np.savez("mine.npz", x=np.random.default_rng(0).random((40, 3)), y=np.arange(40) % 2)
>>> parts = read("mine.npz")
>>> len(parts.train), len(parts.valid), len(parts.test), parts.train.classes
(28, 4, 8, ('0', '1'))

Where there is no split, a fifth of each class is held out as the test and a tenth for validation,
by a hash of the file's name, or of the values of a row, so that equal rows stay together. `truth`
is a right label beside one that may be wrong; tests are judged by it where it is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.data.cache import digest
from passband.data.labelled.inputs import (
    arrays,
    images_in,
    numeric_columns,
    read_images,
    read_table,
    shaped,
)
from passband.data.labelled.labelled import Labelled, Parts
from passband.errors import DataError, UnknownNameError

TEST, VALID = 20, 10  # % of each class
_TRAIN, _VALID, _TEST = range(3)
SPLITS = {"train": "train", "training": "train", "valid": "valid", "val": "valid",
          "validation": "valid", "test": "test", "testing": "test"}
LAYOUTS = "a folder CLASS/image or DOMAIN/CLASS/image, an .npz with x and y, or a .csv with a " \
    "column label"


def read(path: str | Path, *, unseen: str | None = None) -> Parts:
    """Training, validation and test part of the user's data.

    unseen  name of a domain that becomes the test, so that training never sees it
    Raises `DataError` for what can't be read, images of several sizes, classes of fewer than three
    examples; `UnknownNameError` for a domain that isn't there.
    """
    path = Path(path)
    if path.is_dir():
        given = _given_split(path)
        if given is not None:
            if unseen is not None:
                raise DataError(
                    f"{path} has its own split, and a domain {unseen!r} to leave out",
                    expected="one of them", mend="name the domains' folders at the top",
                )
            return given
    whole, keys = _whole(path)
    if unseen is None:
        return split(whole, keys)
    if unseen not in whole.group_names or whole.groups is None:
        raise UnknownNameError("domain", unseen, whole.group_names)
    away = whole.groups == whole.group_names.index(unseen)
    kept = [key for key, out in zip(keys, away.tolist(), strict=True) if not out]
    seen = split(whole.subset(~away), kept, test=0)
    return Parts(seen.train, seen.valid, whole.subset(away))


def read_whole(path: str | Path) -> Labelled:
    """All examples of a file or folder, undivided."""
    return _whole(Path(path))[0]


def split(
    data: Labelled, keys: Sequence[str], test: int = TEST, valid: int = VALID
) -> Parts:
    """Each class divided by the hashes of its keys; equal keys go to one side.

    keys         one an example: a name, or a hash of what it contains
    test, valid  shares in %; a test of 0 % gives the validation part as the test
    Raises `DataError` for a class that can't give every part an example.
    """
    first: dict[str, int] = {}  # class of a key; wrong labels may give it others besides
    for key, c in zip(keys, data.y.tolist(), strict=True):
        first.setdefault(key, c)
    side = {}
    for c in range(len(data.classes)):
        ranked = sorted((k for k in first if first[k] == c), key=lambda key: digest([key]))
        tests = max(1, round(len(ranked) * test / 100)) if test else 0
        valids = max(1, round(len(ranked) * valid / 100))
        side |= dict.fromkeys(ranked, _TRAIN)
        side |= dict.fromkeys(ranked[: tests + valids], _VALID)
        side |= dict.fromkeys(ranked[:tests], _TEST)
    sides = torch.tensor([side[key] for key in keys])
    needed = (_TRAIN, _VALID, _TEST) if test else (_TRAIN, _VALID)
    for c, name in enumerate(data.classes):
        if not set(needed) <= set(sides[data.y == c].tolist()):
            different = len({k for k, y in zip(keys, data.y.tolist(), strict=True) if y == c})
            raise DataError(
                f"class {name!r} has {different} different examples of {int((data.y == c).sum())}",
                expected=f"{len(needed)} or more: one to learn from, and one for each check",
                mend="add some, or leave the class out",
            )
    train, held = (data.subset(sides == s) for s in (_TRAIN, _VALID))
    return Parts(train, held, data.subset(sides == _TEST) if test else held)


# ---- the layouts -------------------------------------------------------------------------------


def _whole(path: Path) -> tuple[Labelled, list[str]]:
    """All examples with their keys."""
    if path.is_dir():
        return _folder(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise DataError(
            f"{path} {'is no such data' if path.exists() else 'does not exist'}", expected=LAYOUTS
        )
    return reader(path)


def _folder(path: Path) -> tuple[Labelled, list[str]]:
    """CLASS/image or DOMAIN/CLASS/image."""
    files = images_in(path)
    if not files:
        raise DataError(f"{path} has no images", expected=LAYOUTS)
    names = [file.relative_to(path) for file in files]
    depths = Counter(len(name.parts) for name in names)
    if len(depths) > 1 or not depths.keys() <= {2, 3}:
        depth, _ = depths.most_common(1)[0]
        odd = next((name for name in names if len(name.parts) != depth), names[0])
        raise DataError(
            f"{path} has images at {len(depths)} different depths, such as {odd}"
            if len(depths) > 1 else f"{path} has images such as {odd}",
            expected="all at CLASS/image, or all at DOMAIN/CLASS/image",
            mend="move them into folders named for their classes",
        )
    labels = [name.parts[-2] for name in names]
    domains = [name.parts[0] for name in names] if 3 in depths else None
    found = _named(read_images(files), labels, domains, None, str(path))
    keys = [name.as_posix() for name in names]
    return replace(found, names=tuple(keys)), keys


def _given_split(path: Path) -> Parts | None:
    """A folder whose own folders are train, test and perhaps valid; None where they aren't."""
    folders = {p.name.lower(): p for p in path.iterdir() if p.is_dir() and p.name[0] != "."}
    if not folders or not folders.keys() <= SPLITS.keys():
        return None
    sides = {SPLITS[name]: folder for name, folder in folders.items()}
    if not {"train", "test"} <= sides.keys():
        raise DataError(
            f"{path} has folders {', '.join(sorted(folders))}", expected="train and test at least",
            mend="or one folder a class: a part of each is then held out",
        )
    found = {side: _folder(folder) for side, folder in sides.items()}
    train, keys = found["train"]
    for side, (part, _) in found.items():
        if part.classes != train.classes or part.shape != train.shape:
            raise DataError(
                f"{sides[side]}: classes {', '.join(part.classes)}, shape {list(part.shape)}",
                expected=f"those of training: {', '.join(train.classes)}, {list(train.shape)}",
            )
    if "valid" in found:
        return Parts(train, found["valid"][0], found["test"][0])
    parts = split(train, keys, test=0)
    return Parts(parts.train, parts.valid, found["test"][0])


def _npz(path: Path) -> tuple[Labelled, list[str]]:
    found = arrays(path, ("x", "y"))
    x = shaped(found["x"], str(path))
    for name in ("y", "domain", "truth"):
        if name in found and found[name].shape != (len(x),):
            raise DataError(
                f"{path}: {name} of shape {list(found[name].shape)}", expected=f"[{len(x)}], one "
                "an example",
            )
    columns = (_texts(found.get(name), f"{path}: {name}") for name in ("y", "domain", "truth"))
    labels, domains, truth = columns
    assert labels is not None
    return _named(x, labels, domains, truth, str(path)), _content_keys(x)


def _csv(path: Path) -> tuple[Labelled, list[str]]:
    header, rows = read_table(path)
    if "label" not in header:
        raise DataError(
            f"{path} has columns {', '.join(header[:8])}", expected="one of them `label`",
            mend="name the column of classes label; path, domain and truth are known as well",
        )

    def column(name: str) -> list[str] | None:
        return [row[header.index(name)] for row in rows] if name in header else None

    labels, domains, truth = column("label"), column("domain"), column("truth")
    assert labels is not None
    empty = next((i for i, label in enumerate(labels) if not label), None)
    if empty is not None:
        raise DataError(f"{path}, row {empty + 2} has no label", expected="a class")
    files = column("path")
    if files is None:
        x = numeric_columns(header, rows, path, besides=("label", "domain", "truth"))
        return _named(x, labels, domains, truth, str(path)), _content_keys(x)
    x = read_images([path.parent / file for file in files])
    return replace(_named(x, labels, domains, truth, str(path)), names=tuple(files)), files


_READERS: dict[str, Callable[[Path], tuple[Labelled, list[str]]]] = {".npz": _npz, ".csv": _csv}


def _named(
    x: Tensor, labels: Sequence[str], domains: Sequence[str] | None,
    truth: Sequence[str] | None, where: str,
) -> Labelled:
    """Texts become numbers: classes in the order of their names, numbers before words."""
    classes = sorted({*labels, *(truth or ())}, key=_order)
    if len(classes) < 2:
        raise DataError(f"{where}: one class only, {classes[0]!r}", expected="two or more")
    groups = sorted(set(domains), key=_order) if domains else []
    place = {name: i for i, name in enumerate(classes)}
    group = {name: i for i, name in enumerate(groups)}
    return Labelled(
        x, torch.tensor([place[label] for label in labels]), tuple(classes),
        None if truth is None else torch.tensor([place[label] for label in truth]),
        None if not domains else torch.tensor([group[d] for d in domains]), tuple(groups),
    )


def _order(name: str) -> tuple[bool, float, str]:
    return (False, float(name), name) if name.lstrip("-").isdigit() else (True, 0.0, name)


def _texts(values: np.ndarray | None, what: str) -> list[str] | None:
    """Integers or texts as texts."""
    if values is None:
        return None
    if values.dtype.kind == "f" and np.array_equal(values, np.round(values)):
        values = values.astype(np.int64)
    if values.dtype.kind not in "iubUS":
        raise DataError(
            f"{what} is {values.dtype}", expected="whole numbers or texts, one class an example",
            mend="numbers that are measured rather than counted are no classes",
        )
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind == "b":
        values = values.astype(np.int64)
    return [str(value) for value in values]


def _content_keys(x: Tensor) -> list[str]:
    rows: Any = x.flatten(1).contiguous().numpy()
    return [digest([row.tobytes()]) for row in rows]

"""Images and rows of numbers from users' files, as tensors of one shape.

    read_images(paths, shape)  ->  [N, channels, height, width] float32 in [0, 1]
    read_inputs(path, shape)   ->  ([N, *shape], names) of a folder, an image, an .npz or a .csv

>>> np.savez("some.npz", x=np.zeros((2, 8, 8), np.uint8))
>>> x, names = read_inputs(Path("some.npz"), (1, 8, 8))
>>> x.shape, names
(torch.Size([2, 1, 8, 8]), ['some.npz[0]', 'some.npz[1]'])
"""

from __future__ import annotations

import csv
import math
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
Shape = Sequence[int]


def read_images(paths: Sequence[Path], shape: Shape | None = None) -> Tensor:
    """[N, channels, height, width] float32 in [0, 1].

    shape  (channels, height, width) that is asked for; None: the size they have, grey where all
           are grey, else red, green and blue
    Raises `DataError` for unreadable files, and for several sizes with how many have each.
    """
    if not paths:
        raise DataError("no images", expected="one or more")
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise DataError(
            f"images for a system that takes examples of shape {list(shape)}",
            expected="[1 or 3, height, width]", mend="give an .npz with an array x of that shape",
        )
    sizes, modes = zip(*map(_look, paths), strict=True)
    _one_size(sizes, None if shape is None else (shape[2], shape[1]))
    width, height = sizes[0]
    channels = shape[0] if shape is not None else 1 if all(map(_is_grey, modes)) else 3
    _fits_memory(len(paths) * channels * height * width)
    found = torch.empty(len(paths), channels, height, width)
    for place, path in zip(found, paths, strict=True):
        place.copy_(_read(path, channels))
    return found


def read_inputs(path: Path, shape: Shape) -> tuple[Tensor, list[str]]:
    """What `classify` is to look at, [N, *shape], with a name for each row.

    path  a folder, whose images are taken at any depth; an image; an .npz with an array `x`; a
          .csv of columns x0, x1, ...
    """
    if path.is_dir():
        files = images_in(path)
        if not files:
            raise DataError(
                f"{path} has no images", expected=f"files {', '.join(SUFFIXES)}, at any depth"
            )
        names = [file.relative_to(path).as_posix() for file in files]
        return read_images(files, shape), names
    if path.suffix.lower() == ".npz":
        x = shaped(arrays(path, ("x",))["x"], str(path))
    elif path.suffix.lower() == ".csv":
        x = numeric_columns(*read_table(path), path)
    else:
        return read_images([path], shape), [path.name]
    if tuple(x.shape[1:]) != tuple(shape):
        raise DataError(
            f"{path} has rows of shape {list(x.shape[1:])}", expected=f"{list(shape)}",
            mend="bring them to the shape that the system was trained on",
        )
    return x, [f"{path.name}[{i}]" for i in range(len(x))]


def images_in(folder: Path) -> list[Path]:
    """Image files at any depth, sorted; hidden ones and what lies in hidden folders left out."""
    return sorted(
        file for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def arrays(path: Path, needed: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path} can't be read: {error}", expected="an .npz of plain arrays",
            mend="np.savez(path, x=x, y=y), text as an array of dtype str, not object",
        ) from None
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(found)) or 'nothing'}",
            expected=f"arrays {', '.join(needed)}",
        )
    return found


def shaped(x: np.ndarray, what: str) -> Tensor:
    """Rows [N, d] or images [N, channels, height, width] of an array as users have them.

    [N, H, W] gets one channel; [N, H, W, 1 | 3] is turned; bytes are divided by 255.

    >>> shaped(np.full((2, 4, 5, 3), 255, np.uint8), "x").shape
    torch.Size([2, 3, 4, 5])
    """
    if x.dtype.kind not in "fiub" or x.ndim < 2 or len(x) == 0:
        raise DataError(
            f"{what}: x is {x.dtype} of shape {list(x.shape)}",
            expected="numbers [N, d], [N, height, width], [N, channels, height, width] or "
            "[N, height, width, channels], N >= 1",
        )
    _fits_memory(x.size)
    found = torch.from_numpy(np.ascontiguousarray(x).astype(np.float32))
    if x.dtype == np.uint8:
        found = found / 255
    if found.dim() == 3:
        return found[:, None]
    if found.dim() == 4 and found.shape[3] in (1, 3) and found.shape[1] not in (1, 3):
        return found.movedim(3, 1).contiguous()
    return found


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV with a header; raises `DataError` that names the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read: {error}", expected="a CSV in UTF-8") from None
    if len(lines) < 2:
        raise DataError(f"{path} has {len(lines)} lines", expected="a header and rows below it")
    header = [cell.strip() for cell in lines[0]]
    if len(set(header)) < len(header):
        twice = next(n for n, count in Counter(header).items() if count > 1)
        raise DataError(f"{path} has two columns {twice!r}", expected="different names")
    for number, row in enumerate(lines[1:], 2):
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {number} has {len(row)} cells", expected=f"{len(header)}, as the "
                "header", mend="quote texts that have commas in them",
            )
    return header, [[cell.strip() for cell in row] for row in lines[1:]]


def numeric_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], path: Path, besides: Sequence[str] = ()
) -> Tensor:
    """[N, d] of all columns but those of `besides`; raises `DataError` that names the cell."""
    places = [i for i, name in enumerate(header) if name not in besides]
    if not places:
        raise DataError(f"{path} has no column of numbers", expected="x0, x1, ...")
    found = torch.empty(len(rows), len(places))
    for i, row in enumerate(rows):
        for j, place in enumerate(places):
            try:
                value = float(row[place])
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise DataError(
                    f"{path}, row {i + 2}, column {header[place]!r}: {row[place]!r}",
                    expected="a finite number",
                    mend="fill or leave out missing values; number the categories of a column",
                )
            found[i, j] = value
    return found


# ---- images ----------------------------------------------------------------------------------


def _pillow() -> Any:
    from PIL import Image  # comes with matplotlib

    return Image


def _look(path: Path) -> tuple[tuple[int, int], str]:
    """((width, height), mode) without reading the pixels."""
    image = _pillow()
    try:
        with image.open(path) as file:
            return file.size, file.mode
    except (OSError, ValueError, image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _read(path: Path, channels: int) -> Tensor:
    image = _pillow()
    try:
        with image.open(path) as file:
            if file.mode.startswith("I"):  # 16 bits a pixel, which `convert` would clip
                grey = np.asarray(file, np.float32)[None] / 65535
                return torch.from_numpy(grey).expand(channels, -1, -1)
            pixels = np.asarray(file.convert("L" if channels == 1 else "RGB"), np.float32) / 255
    except (OSError, ValueError, image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None
    return torch.from_numpy(pixels[None] if channels == 1 else np.moveaxis(pixels, 2, 0).copy())


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} can't be read: {error}", expected="an image",
        mend="leave the file out, or save it anew as PNG",
    )


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA") or mode.startswith("I")


def _one_size(sizes: Sequence[tuple[int, int]], asked: tuple[int, int] | None) -> None:
    counts = Counter(sizes).most_common()
    if len(counts) == 1 and (asked is None or counts[0][0] == asked):
        return
    some = ", ".join(f"{n} of {w}x{h}" for (w, h), n in counts[:4])
    more = f" and {len(counts) - 4} more sizes" if len(counts) > 4 else ""
    width, height = asked or counts[0][0]
    raise DataError(
        f"images: {some}{more}",
        expected=f"all {width}x{height}, as in training" if asked else "one size",
        mend=f"bring them to one size: mogrify -resize {width}x{height}! *.png (ImageMagick), or "
        "Image.resize of Pillow",
    )


def _fits_memory(numbers: int) -> None:
    import psutil

    free = psutil.virtual_memory().available
    if 8 * numbers > free:  # 4 bytes each, and as much again while they are normalised
        raise DataError(
            f"{8 * numbers / 2**30:.1f} GiB of examples", expected=f"up to {free / 2**30:.1f} GiB, "
            "the free memory", mend="smaller images or fewer of them; for more use the method's "
            "loss in your own loop",
        )

"""What a user brings: inputs with targets, a kernel matrix with targets, or a spectrum.

    data.npz      x [N, ...] and y;  or kernel [N, N] and y;  or eigenvalues [M], power [M], noise
    folder/       x.npy or kernel.npy, and y.npy
    folder/       class/image.png, or a table .csv: as the family reads them (`data.labelled`)

y is [N] or [N, C]: integers, booleans and text are classes, real numbers are values.

>>> np.savez("data.npz", x=np.eye(4), y=["a", "b", "a", "b"])
>>> subject = read(Path("data.npz"))
>>> subject.x.shape, subject.y.tolist()
((4, 4), ['a', 'b', 'a', 'b'])
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from passband.dynamics.rf_eigen.checks import numbers, one_hot
from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.errors import DataError, PassbandWarning

NAMES = {
    "x": ("x", "X", "inputs", "data", "images"), "kernel": ("kernel", "K", "gram"),
    "y": ("y", "Y", "targets", "labels"),
}
SPREAD = 1e3  # of the columns' standard deviations: these have different units
MOST_CLASSES = 0.5  # of the points: integers with more different values are no classes
Targets = Literal["auto", "classes", "numbers"]


@dataclass(frozen=True, eq=False)
class Subject:
    """x [N, ...] or kernel [N, N], with y; or a spectrum alone."""

    x: np.ndarray | None = None
    kernel: np.ndarray | None = None
    y: np.ndarray | None = None
    spectrum: Spectrum | None = None


def read(path: Path) -> Subject:
    """Raises `DataError` for what can't be read, naming what was there and what is looked for."""
    if path.is_dir() and (arrays := {p.stem: p for p in sorted(path.glob("*.npy"))}):
        return _subject({name: _npy(file) for name, file in arrays.items()}, path)
    if path.suffix == ".npz":
        return _subject(_npz(path), path)
    if path.is_dir() or path.suffix == ".csv":
        return _labelled(path)
    raise DataError(
        f"{path} is none of the files that are read",
        expected=".npz with x and y, or kernel and y; a folder of .npy; images by class; .csv",
        mend="np.savez('data.npz', x=x, y=y)",
    )


def _subject(arrays: Mapping[str, np.ndarray], path: Path) -> Subject:
    if "eigenvalues" in arrays:
        power = arrays.get("power")
        if power is None:
            raise DataError(f"{path} has eigenvalues without power",
                            expected="power [M]: squared coefficients of the target")
        return Subject(spectrum=Spectrum(
            arrays["eigenvalues"], power, float(arrays.get("noise", 0.0)), arrays.get("counts"),
        ))
    found = {
        what: next((arrays[name] for name in names if name in arrays), None)
        for what, names in NAMES.items()
    }
    if found["y"] is None or (found["x"] is None) == (found["kernel"] is None):
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}",
            expected="y with either x or kernel; or eigenvalues and power",
            mend="np.savez('data.npz', x=x, y=y)",
        )
    return Subject(**found)


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise DataError(f"{path} can't be read: {error}", expected="arrays saved by np.savez",
                        mend="arrays of objects are not read: save numbers or text") from None


def _npy(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} can't be read: {error}", expected="an array saved by np.save",
                        mend="arrays of objects are not read: save numbers or text") from None
    return array


def _labelled(path: Path) -> Subject:
    """Images by class and tables; every example, whichever part it would fall into."""
    from passband.data.labelled.readers import read as read_labelled

    parts = read_labelled(path)
    known = [part for part in (parts.train, parts.valid, parts.test) if part is not None]
    return Subject(
        x=np.concatenate([np.asarray(p.x) for p in known]),
        y=np.concatenate([np.asarray(p.y) for p in known]),
    )


# ---- from arrays to what is computed with --------------------------------------------------------


def as_targets(y: Any, kind: Targets = "auto") -> np.ndarray:
    """[N, C] float64: one-hot rows of classes, or values.

    >>> as_targets([2, 5, 2]).tolist(), as_targets([0.5, 2.0]).tolist()
    ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[0.5], [2.0]])
    """
    array = np.asarray(y)
    discrete = array.dtype.kind in "iubUS"
    if array.ndim not in (1, 2) or not array.size:
        raise DataError(f"targets {array.shape}", expected="[N] or [N, C]")
    if kind == "classes" or (kind == "auto" and discrete and array.ndim == 1):
        if array.ndim != 1:
            raise DataError(f"classes {array.shape}", expected="[N]: one for each point")
        if len(np.unique(array)) > max(2, MOST_CLASSES * len(array)):
            raise DataError(
                f"{len(np.unique(array))} classes among {len(array)} points",
                expected="several points in each class",
                mend="targets='numbers' for integers that are values",
            )
        return one_hot(array)
    array = numbers(array, "the targets y")
    return array[:, None] if array.ndim == 1 else array


def as_inputs(x: Any, normalise: Literal["global", "columns", "none"] = "global") -> np.ndarray:
    """[N, d] float64, by one mean and deviation of all numbers, or of each column.

    Raises `DataError` for NaN, constants, fewer than two points.
    """
    array = numbers(x, "the inputs x")
    if array.ndim < 2 or len(array) < 2 or not array.size:
        raise DataError(f"inputs {array.shape}", expected="[N, d] or [N, ...], N at least 2",
                        mend="x[:, None] makes one column of a list of numbers")
    array = array.reshape(len(array), -1)
    spread = array.std(0)
    if not spread.any():
        raise DataError("all points are equal", expected="inputs that differ")
    if normalise == "none":
        return array
    if normalise == "columns":
        return (array - array.mean(0)) / np.where(spread > 0, spread, 1)
    used = spread[spread > 0]
    if used.max() > SPREAD * np.median(used):
        warnings.warn(
            f"the columns of x differ in scale: one has {used.max() / np.median(used):.0f} times "
            "the median's deviation, and the kernel will see little else; normalise=columns",
            PassbandWarning, stacklevel=2,
        )
    return (array - array.mean()) / array.std()

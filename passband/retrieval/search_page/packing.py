"""Arrays as text that `arrays.js` reads: base64 of their bytes, little-endian.

>>> packed(np.array([1, 2]), "uint16")
{'type': 'uint16', 'data': 'AQACAA=='}
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Packed = dict[str, Any]


def packed(values: Any, kind: str) -> Packed:
    """kind is float32, float16, int32, uint16 or int8."""
    array = np.ascontiguousarray(values, dtype=np.dtype(kind).newbyteorder("<"))
    return {"type": kind, "data": base64.b64encode(array.tobytes()).decode("ascii")}


def packed_rows(matrix: Any) -> Packed:
    """A matrix in 8 bits, each row with a scale of its own: w = scale * round(w / scale).

    >>> sorted(packed_rows(np.eye(2)))
    ['data', 'scales', 'type']
    """
    rows = np.asarray(matrix, dtype=np.float32)
    scales = np.maximum(np.abs(rows).max(1), 1e-12) / 127
    return {**packed(np.rint(rows / scales[:, None]), "int8"), "scales": packed(scales, "float32")}

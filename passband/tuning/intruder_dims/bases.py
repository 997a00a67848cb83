"""Base vectors that are computed once for a pretrained weight and kept on disk.

>>> bases = kept_bases()                       # small matrices are not kept, but computed
>>> bases("w", torch.eye(3)).vectors()[0].shape
torch.Size([3, 3])

A file is named by the hash of the weight's values, so that another weight is another file; vectors
are kept in single precision, whose rounding moves a cosine by 1e-7.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from passband.data.cache import stored_tensors
from passband.parts.intruders import SIDES, Base, Side
from passband.tuning.intruder_dims.report import Bases

LEAST = 512  # smaller sides are decomposed sooner than read and checked


def kept_bases(side: Side = "left", *, within: float = 0.0, least: int = LEAST) -> Bases:
    """(name, weight) -> Base, its vectors from the user's cache where they have been there before.

    least  smaller side from which on vectors are kept
    """

    def base(_: str, weight: Tensor) -> Base:
        made = Base(weight, within=within)
        if min(made.shape) >= least:
            for one in SIDES[side]:
                _recall(made, one)
        return made

    return base


def _recall(base: Base, side: Literal["left", "right"]) -> None:
    content = base.weight.contiguous().cpu()
    key = {
        "version": 1, "side": side, "shape": list(base.shape),
        "sha256": hashlib.sha256(content.numpy().tobytes()).hexdigest(),
    }
    found = stored_tensors("intruder-bases", key, partial(_vectors, base, side))
    device = base.weight.device
    base.preset(side, found["vectors"].to(device), found["sigma"].to(device))


def _vectors(base: Base, side: Literal["left", "right"]) -> dict[str, Tensor]:
    vectors, sigma = base.vectors(side)
    return {"vectors": vectors.float().cpu(), "sigma": sigma.to(torch.float64).cpu()}

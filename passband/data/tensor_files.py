"""Files of published weights: safetensors, and torch's own, of which nothing but tensors is taken.

>>> torch.save({"generator": {"bias": torch.zeros(2)}}, "published.pt")
>>> read_tensors("published.pt")
{'generator': {'bias': tensor([0., 0.])}}

A torch file is read by torch's interpreter for weights (`weights_only=True`): it knows tensors,
numbers, texts and containers, and refuses what would run any code.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from passband.errors import CheckpointError


def read_tensors(path: str | Path) -> Any:
    """What the file holds: tensors by name, or a tree of such.

    Raises `CheckpointError` for a missing or damaged file and one that holds other objects.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    # What the readers raise depends on where they stumble over the bytes.
    damaged = (
        UnpicklingError, SafetensorError, RuntimeError, OSError, EOFError, LookupError, ValueError,
        TypeError, AttributeError,
    )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except damaged as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} can't be read as tensors: {reason}",
            expected="a .safetensors file, or a torch checkpoint that holds tensors alone",
            mend="save its state_dict() anew with the code that wrote it",
        ) from None

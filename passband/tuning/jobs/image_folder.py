"""A user's pictures of digits for the small diffusion model: a folder with `metadata.jsonl`.

    DIR/metadata.jsonl    {"file_name": "a.png", "text": "a 3 in blue ink"} on each line

The digit in the text is the class. Pictures become grey and 8x8. A fifth of them, two at least, is
held out by a hash of the names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from passband.bench.task import Data
from passband.data.digits import Digits
from passband.data.sources import bucket
from passband.errors import DataError
from passband.tuning.adaptation import Adaptation, Exam
from passband.tuning.diffusion_digits import (
    SIZES,
    Prior,
    accuracy,
    denoising,
    distance,
    drawn,
    of_prior,
    pretrained,
)

HELD_OUT = 20  # %
LAYOUT = 'lines {"file_name": ..., "text": ...}, a digit 0 to 9 in each text'


def read(path: Path, model: Path | None = None) -> Data[Adaptation]:
    """The job of a user's folder; raises `DataError` for what is missing or can't be read."""
    if model is not None:
        raise DataError(
            f"a model {model} for a task that has its own", expected="no --model",
            mend="a method on your own diffusion model: handle = SaRA().attach(model), any loop",
        )
    names, images = zip(*_pictures(path), strict=True)
    whole = Digits(torch.cat([i.images for i in images]), torch.cat([i.labels for i in images]))
    ranked = sorted(range(len(names)), key=lambda i: (bucket(names[i]), names[i]))
    count = max(2, len(names) * HELD_OUT // 100)
    if len(names) < count + 2:
        raise DataError(
            f"{len(names)} pictures in {path}", expected="4 or more: two are held out",
        )
    held, kept = whole.subset(ranked[:count]), whole.subset(ranked[count:])
    prior = SIZES["small"]
    job = Adaptation(f"pictures of {path.name}", partial(pretrained, prior), kept, denoising,
                     kind="denoising")

    def measure(model: nn.Module) -> dict[str, float]:
        return _examined(model, prior, held)

    return Data(train=job, test=Exam(job.model, measure, partial(of_prior, measure, prior)),
                name=job.name)


def _examined(model: nn.Module, prior: Prior, held: Digits) -> dict[str, float]:
    """Of drawn digits: like the held-out ones, still recognised, still like the model's own."""
    classes = sorted(set(held.labels.tolist()))
    others = [c for c in range(10) if c not in classes] or list(range(10))
    rest = drawn(model, others, prior)
    return {
        "target": distance(drawn(model, classes, prior), held),
        "retention": 100 * accuracy(rest),
        "out_of_domain": -distance(rest, held),
    }


def _pictures(path: Path) -> Iterator[tuple[str, Digits]]:
    table = path / "metadata.jsonl"
    if not table.is_file():
        raise DataError(f"{table} doesn't exist", expected=f"a folder with it, {LAYOUT}")
    lines = [line for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{table} is empty", expected=LAYOUT)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            name, digit = str(row["file_name"]), re.search(r"\b\d\b", str(row["text"]))
        except (ValueError, KeyError, TypeError):
            name, digit = "", None
        if digit is None:
            raise DataError(f"{table}, line {number}: {line[:80]}", expected=LAYOUT)
        yield name, Digits(_picture(path / name), torch.tensor([int(digit[0])]))


def _picture(path: Path) -> torch.Tensor:
    """[1, 1, 8, 8] in [0, 1]."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} can't be read: {error}", expected="a picture") from None
    return torch.from_numpy(np.asarray(small, np.float32) / 255)[None, None]

"""What a classifier's result looks like: which classes are confused, which labels look wrong.

    draw(system, data, folder)           the family's pictures, then the system's own
    confusion_picture(counts, names, path)
    image_row(images, titles, path)      a strip of images with a word below each
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from passband.bench.report.style import ACCENT, SECOND, picture, save
from passband.bench.task import Artifact, Data
from passband.dynamics.scores import accuracies, confusion, predicted

if TYPE_CHECKING:
    from passband.data.labelled.labelled import Labelled

SHOWN = 12  # images of a strip
WRITTEN = 12  # classes up to which the counts stand in the cells
MOST = 60  # classes up to which a confusion matrix can be read


def draw(system: Any, data: Data[Labelled], folder: Path) -> list[Artifact]:
    """Confusion on the test part, and the most suspicious training labels where some are wrong."""
    if data.test is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    test, artifacts = data.test, []
    found = predicted(system, test)
    if len(test.classes) <= MOST:
        counts = confusion(found, test.right, len(test.classes))
        confusion_picture(counts, test.classes, folder / "confusion.svg")
        artifacts.append(Artifact(
            "image", "Confusion on the test part", "confusion.svg",
            f"rows: true class, columns: given one; {accuracies(found, test)['accuracy']:.1f} % "
            "lie on the diagonal",
        ))
    train = data.train
    if is_image(train.shape) and train.wrong.any():
        artifacts.append(_suspects(system, train, folder))
    if hasattr(system, "pictures"):
        artifacts += system.pictures(data, folder)
    return artifacts


def _suspects(system: Any, train: Labelled, folder: Path) -> Artifact:
    order = np.argsort(-system.suspicion(train), kind="stable")[:SHOWN]
    titles, colours = [], []
    for i in order.tolist():
        label, truth = (train.classes[int(part[i])] for part in (train.y, train.right))
        titles.append(f"{label} → {truth}" if label != truth else f"{label}, right")
        colours.append(ACCENT if label != truth else SECOND)
    image_row(train.x[torch.from_numpy(order)], titles, folder / "suspects.svg", colours)
    return Artifact(
        "image", "Training labels that look most wrong", "suspects.svg",
        "label given → true one; orange: the suspicion is false",
    )


def confusion_picture(counts: Tensor, names: Sequence[str], path: Path) -> Path:
    """counts [C, C], rows true; coloured by their share of the row."""
    classes = len(names)
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    longest = max(map(len, names))
    size = min(7.0, 1.4 + 0.34 * classes + 0.06 * longest)
    with picture(size, size) as fig:
        axes = fig.subplots()
        axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
        if classes <= WRITTEN:
            for i in range(classes):
                for j in range(classes):
                    if n := int(counts[i, j]):
                        axes.text(
                            j, i, str(n), ha="center", va="center", fontsize=8,
                            color="white" if share[i, j] > 0.5 else "#30343a",
                        )
        step = 1 if classes <= 30 else 5
        places = range(0, classes, step)
        turn = 90 if longest > 2 else 0
        axes.set_xticks(places, [names[i] for i in places], rotation=turn)
        axes.set_yticks(places, [names[i] for i in places])
        axes.set(xlabel="given", ylabel="true")
        axes.grid(visible=False)
        return save(fig, path)


def image_row(
    images: Tensor, titles: Sequence[str], path: Path, colours: Sequence[str] | None = None
) -> Path:
    """Up to a dozen images [n, 1 | 3, H, W] in [0, 1] beside each other, a title below each."""
    n = len(images)
    with picture(0.75 * max(n, 2), 1.05) as fig:
        row = np.atleast_1d(fig.subplots(1, n))
        for i, (axes, image) in enumerate(zip(row, images, strict=True)):
            pixels = image.clamp(0, 1).movedim(0, 2).numpy()
            axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            axes.set_xlabel(titles[i], fontsize=8, **({"color": colours[i]} if colours else {}))
        return save(fig, path)


def is_image(shape: Sequence[int]) -> bool:
    """Whether examples of this shape can be drawn.

    >>> is_image((3, 32, 32)), is_image((2, 8, 8)), is_image((64,))
    (True, False, False)
    """
    return len(shape) == 3 and shape[0] in (1, 3)

"""Digits in a new style: a diffusion model of all ten classes learns from a few of five of them.

>>> data = style(seed=0, size="smoke")
>>> job, exam = data.train, data.test
>>> loss = job.output(job.model(), (job.examples.images[:8], job.examples.labels[:8])).loss

The prior knows the ten classes in their own style. It is adapted to 200 styled images of classes
0 to 4. Measured on images that the adapted model draws (the same noise for all):
    target         Frechet distance of classes 0-4 to held-out styled images
    retention      accuracy of a digit classifier on drawn classes 5-9 (does the prior still draw
                   what it is asked for; the part CLIP scores play for text-to-image models)
    out_of_domain  minus the Frechet distance of classes 5-9 to styled images of these classes
The distance is between Gaussians in the 32 features of the classifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.bench.streams import Streams
from passband.bench.task import Data, Size
from passband.data.cache import stored_json, stored_tensors
from passband.data.digits import Digits, bordered, digits, dilated, inverted
from passband.errors import DataError
from passband.parts.modes import evaluating
from passband.parts.pretraining import pretrain
from passband.tuning.adaptation import Adaptation, Exam, Output
from passband.tuning.diffusion import Diffusion, UNet

STYLED, OTHERS = range(5), range(5, 10)  # classes with training images, and without
EXAMPLES = 200  # training images of a style
STYLES = {"frame": (dilated, bordered), "inverted": (inverted,)}
DIFFUSION = Diffusion(steps=100)


@dataclass(frozen=True)
class Prior:
    """How the pretrained model is made, and how many images are drawn to measure one.

    drawn     images of each class
    sampling  DDIM steps
    """

    width: int = 32
    steps: int = 300
    batch_size: int = 128
    lr: float = 2e-3
    drawn: int = 40
    sampling: int = 10
    version: int = 1  # raised when this file draws or trains differently


SIZES: dict[str, Prior] = {
    "full": Prior(steps=2000, drawn=200, sampling=50),
    "small": Prior(),
    "smoke": Prior(width=8, steps=60, batch_size=64, drawn=8, sampling=4),
}


def style(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    """Thicker strokes in a bright frame."""
    return styled("frame", seed, size)


def inversion(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    """Dark ink on bright paper."""
    return styled("inverted", seed, size)


def styled(name: str, seed: int, size: Size) -> Data[Adaptation]:
    """The job of one style; the seed draws its training images."""
    prior, transforms = SIZES[size], STYLES[name]
    images = digits().train.of(STYLED).transformed(*transforms)
    order = np.random.default_rng([seed, 1]).permutation(len(images))[:EXAMPLES]
    job = Adaptation(
        f"digits in the style {name!r}", lambda: pretrained(prior),
        images.subset(torch.from_numpy(order)), denoising, kind="denoising",
        validation=lambda model: {"loss": validation_loss(model, name)},
    )

    def measure(model: nn.Module) -> dict[str, float]:
        return examined(model, name, prior)

    def start() -> dict[str, float]:
        key = {"prior": asdict(prior), "style": name, "data": digits().fingerprint}
        found: dict[str, float] = stored_json(
            "tuning-diffusion", key, lambda: of_prior(measure, prior)
        )
        return found

    return Data(train=job, test=Exam(job.model, measure, start), name=job.name)


def of_prior(measure: Any, prior: Prior) -> Mapping[str, float]:
    """A measure of the pretrained model."""
    model = pretrained(prior)
    with evaluating(model), torch.no_grad():
        found: Mapping[str, float] = measure(model)
    return found


def denoising(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Output:
    """The diffusion loss of images [B, 1, 8, 8] in [0, 1] and classes [B]."""
    images, labels = batch
    return Output(DIFFUSION.loss(model, 2 * images - 1, labels))


def validation_loss(model: nn.Module, name: str) -> float:
    """Diffusion loss on held-out styled images of the trained classes, at fixed noise."""
    images = digits().valid.of(STYLED).transformed(*STYLES[name])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        loss = DIFFUSION.loss(model, 2 * images.images - 1, images.labels, generator)
    return float(loss)


# ---- measures ------------------------------------------------------------------------------


def examined(model: nn.Module, name: str, prior: Prior) -> dict[str, float]:
    """Draws classes 0-4 and 5-9 and measures them; see the module."""
    held = _held_out().transformed(*STYLES[name])
    target = drawn(model, STYLED, prior)
    others = drawn(model, OTHERS, prior)
    return {
        "target": distance(target, held.of(STYLED)),
        "retention": 100 * accuracy(others),
        "out_of_domain": -distance(others, held.of(OTHERS)),
    }


def _held_out() -> Digits:
    split = digits()
    return Digits(
        torch.cat([split.valid.images, split.test.images]),
        torch.cat([split.valid.labels, split.test.labels]),
    )


def style_distance(model: nn.Module, name: str, prior: Prior) -> float:
    """Distance of drawn classes 0-4 to unseen images of a style; the exam's target alone."""
    with evaluating(model):
        images = drawn(model, STYLED, prior)
    return distance(images, _held_out().transformed(*STYLES[name]).of(STYLED))


def prior_distance(model: nn.Module, prior: Prior, seed: int = 0) -> float:
    """Distance of what a model draws, all classes, to unseen digits in their own style."""
    with evaluating(model):
        images = drawn(model, range(10), prior, seed)
    return distance(images, _held_out())


def drawn(
    model: nn.Module, classes: Iterable[int], prior: Prior, seed: int = 0
) -> Digits:
    """Images in [0, 1] that a model draws of some classes, equally many of each."""
    labels = torch.tensor(list(classes)).repeat(prior.drawn)
    images = DIFFUSION.ddim(model, labels, steps=prior.sampling, seed=seed)
    return Digits(images.clamp(-1, 1) / 2 + 0.5, labels)


def distance(a: Digits, b: Digits) -> float:
    """Frechet distance of two sets of images in the features of the classifier."""
    read = classifier()
    with torch.no_grad():
        return frechet(read.features(a.images).numpy(), read.features(b.images).numpy())


def accuracy(images: Digits) -> float:
    """Share of images in which the classifier sees their class."""
    with torch.no_grad():
        return float((classifier()(images.images).argmax(1) == images.labels).float().mean())


def frechet(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Frechet distance of the Gaussians of two samples a [N, D], b [M, D].

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> bool(abs(frechet(x, x + 2.0) - 12.0) < 1e-9)
    True

    Raises `DataError` for fewer than two samples, or samples that are not finite.
    """
    if min(len(a), len(b)) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError(
            f"samples {a.shape} and {b.shape}", expected="two or more finite ones on each side"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    left, right = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(np.atleast_2d(left))
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ np.atleast_2d(right) @ root).clip(0)
    shift = a.mean(0) - b.mean(0)
    total = shift @ shift + np.trace(np.atleast_2d(left)) + np.trace(np.atleast_2d(right))
    return float(max(0.0, total - 2 * np.sqrt(mixed).sum()))


# ---- what is trained once -------------------------------------------------------------------


class Classifier(nn.Module):
    """Digits [N, 1, 8, 8] in [0, 1] to logits [N, 10]; 32 features before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.fc, self.out = nn.Linear(512, 32), nn.Linear(32, 10)

    def features(self, images: Tensor) -> Tensor:
        h = F.relu(self.conv2(F.relu(self.conv1(images))))
        return F.relu(self.fc(F.max_pool2d(h, 2).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.features(images))


@cache
def classifier() -> Classifier:
    """Trained once on the digits in their own style."""

    def make() -> Mapping[str, Tensor]:
        with Streams(0).initialising():
            model = Classifier()
        batches = Batches(64)
        pretrain(model, lambda: F.cross_entropy(*_guessed(model, batches)), steps=400, lr=3e-3)
        return model.state_dict()

    model = Classifier()
    key = {"model": "digit-classifier", "version": 1, "data": digits().fingerprint}
    model.load_state_dict(stored_tensors("tuning-diffusion", key, make))
    return model.eval()


def _guessed(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    images, labels = batches()
    return model(images), labels


def pretrained(prior: Prior = SIZES["small"]) -> UNet:
    """A fresh copy of the prior, trained at the first call on this machine."""
    model = UNet(prior.width)
    model.load_state_dict(_prior_tensors(prior))
    return model


@cache
def _prior_tensors(prior: Prior) -> dict[str, Tensor]:
    def make() -> Mapping[str, Tensor]:
        with Streams(0).initialising():
            model = UNet(prior.width)
        batches = Batches(prior.batch_size)

        def loss() -> Tensor:
            images, labels = batches()
            return DIFFUSION.loss(model, 2 * images - 1, labels, batches.generator)

        pretrain(model, loss, steps=prior.steps, lr=prior.lr, warmup=prior.steps // 20)
        return model.state_dict()

    return stored_tensors("tuning-diffusion", {"model": "prior", **_facts(prior)}, make)


class Batches:
    """Random batches of the training digits, the same at every run."""

    def __init__(self, size: int) -> None:
        self.size, self.generator = size, torch.Generator().manual_seed(0)

    def __call__(self) -> tuple[Tensor, Tensor]:
        data = digits().train
        at = torch.randint(len(data), (self.size,), generator=self.generator)
        return data.images[at], data.labels[at]


def _facts(prior: Prior) -> dict[str, Any]:
    """What the prior depends on."""
    made = ("width", "steps", "batch_size", "lr", "version")
    return {name: getattr(prior, name) for name in made} | {"data": digits().fingerprint}

"""Kernels, and the random features whose mean product each of them is.

    K(x, x') = E_w[g(w, x) g(w, x')]                 d numbers in x, k features
    arc-cosine  relu(w.x), w ~ N(0, 2/d):            |x||x'| (sin t + (pi - t) cos t) / (pi d)
    gaussian    sqrt 2 cos(w.x + b), w ~ N(0, 1/l^2): exp(-|x - x'|^2 / (2 l^2))
    laplace     the same, w ~ Cauchy(1/l):           exp(-|x - x'| / l)
    linear      w.x / sqrt d, w ~ N(0, 1):           x.x' / d
    relu-ntk    infinitely wide ReLU network of some depth, all layers trained; no simple features

Sources: Cho and Saul 2009 (arc-cosine), Rahimi and Recht 2007 (cosines), Jacot et al. 2018 (NTK).

>>> x = np.random.default_rng(0).standard_normal((5, 16))
>>> features = KERNELS["arc-cosine"].features(x, 200_000, np.random.default_rng(1))
>>> bool(np.allclose(features @ features.T / 200_000, KERNELS["arc-cosine"].gram(x, x), atol=0.02))
True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from passband.errors import ConfigError

Features = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Kernel:
    """gram      (x [N, d], x' [N', d]) -> [N, N']
    features  (x [N, d], k, generator) -> [N, k], float64; None where there are none
    """

    gram: Callable[[np.ndarray, np.ndarray], np.ndarray]
    features: Features | None = None


def kernel(name: str, *, depth: int = 2, length: float = 1.0) -> Kernel:
    """One of `KERNELS` with its own depth (relu-ntk) or length scale (gaussian, laplace)."""
    if not depth >= 1 or not length > 0:
        raise ConfigError(f"depth = {depth}, length = {length}", expected="depth >= 1, length > 0")
    made = {
        "arc-cosine": Kernel(arc_cosine, relu_features),
        "relu-ntk": Kernel(partial(relu_ntk, depth=depth)),
        "gaussian": Kernel(
            lambda x, z: np.exp(-_square_distance(x, z) / (2 * length**2)),
            partial(_cosines, draw=_normal, length=length),
        ),
        "laplace": Kernel(
            lambda x, z: np.exp(-np.sqrt(_square_distance(x, z)) / length),
            partial(_cosines, draw=_cauchy, length=length),
        ),
        "linear": Kernel(lambda x, z: x @ z.T / x.shape[1], _linear_features),
    }
    if name not in made:
        raise ConfigError(f"kernel = {name!r}", expected=f"one of {', '.join(made)}")
    return made[name]


# ---- ReLU ----------------------------------------------------------------------------------------


def arc_cosine(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """E[relu(w.x) relu(w.z)] with w ~ N(0, 2/d): its diagonal is |x|^2 / d."""
    cosine, lengths = _angles(x, z)
    return lengths * _kappa1(cosine)


def relu_ntk(x: np.ndarray, z: np.ndarray, depth: int) -> np.ndarray:
    """Neural tangent kernel of `depth` hidden ReLU layers without biases, He's scaling.

    Sigma' = Sigma kappa_1, Theta' = Sigma' + Theta kappa_0 in the angle of each layer.
    """
    cosine, lengths = _angles(x, z)
    theta = cosine.copy()
    for _ in range(depth):
        derivative = (np.pi - np.arccos(cosine)) / np.pi
        cosine = np.clip(_kappa1(cosine), -1.0, 1.0)
        theta = cosine + theta * derivative
    return lengths * theta


def _kappa1(cosine: np.ndarray) -> np.ndarray:
    angle = np.arccos(cosine)
    return (np.sqrt(np.maximum(1 - cosine**2, 0)) + (np.pi - angle) * cosine) / np.pi


def _angles(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the angles, and |x| |z| / d."""
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(z, axis=1)
    product = x @ z.T
    cosine = np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)
    return np.clip(cosine, -1.0, 1.0), lengths / x.shape[1]


def relu_features(x: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """relu(w.x), w ~ N(0, 2/d): [N, k]."""
    d = x.shape[1]
    return np.maximum(x @ (generator.standard_normal((d, k)) * np.sqrt(2 / d)), 0)


# ---- shift-invariant and linear ------------------------------------------------------------------


def _square_distance(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    squares = np.square(x).sum(1)[:, None] + np.square(z).sum(1) - 2 * x @ z.T
    if x is z:
        np.fill_diagonal(squares, 0.0)  # rounding must not show in a square root
    return np.maximum(squares, 0)


def median_distance(x: np.ndarray) -> float:
    """Between points: a usual length scale. Of the first 500."""
    squares = _square_distance(x[:500], x[:500])
    found = float(np.sqrt(np.median(squares[np.triu_indices(len(squares), 1)])))
    return found if found > 0 else 1.0


def _normal(d: int, k: int, generator: np.random.Generator) -> np.ndarray:
    return generator.standard_normal((d, k))


def _cauchy(d: int, k: int, generator: np.random.Generator) -> np.ndarray:
    """Multivariate: the Fourier transform of exp(-|x|)."""
    return generator.standard_normal((d, k)) / np.abs(generator.standard_normal(k))


def _cosines(
    x: np.ndarray, k: int, generator: np.random.Generator, draw: Callable[..., np.ndarray],
    length: float,
) -> np.ndarray:
    w = draw(x.shape[1], k, generator) / length
    return np.sqrt(2) * np.cos(x @ w + generator.uniform(0, 2 * np.pi, k))


def _linear_features(x: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    return x @ generator.standard_normal((x.shape[1], k)) / np.sqrt(x.shape[1])


NAMES = ("arc-cosine", "relu-ntk", "gaussian", "laplace", "linear")
KERNELS = {name: kernel(name) for name in NAMES}

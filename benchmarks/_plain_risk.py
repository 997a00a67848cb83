"""The risk of random-feature regression as its two equations suggest it: nested bisections."""

from __future__ import annotations

import numpy as np


def bisected(
    lam: np.ndarray, v2: np.ndarray, noise: float, n: float, k: float, ridge: float,
    steps: int = 200,
) -> float:
    """E_test: kappa outside, gamma of each kappa inside, `steps` halvings of logarithms each."""

    def gamma_of(kappa: float) -> float:
        low, high = -60.0, 60.0
        for _ in range(steps):
            middle = (low + high) / 2
            gamma = np.exp(middle)
            # sum L + k kappa / gamma falls with gamma
            if (lam / (lam + gamma)).sum() + k * kappa / gamma > k:
                low = middle
            else:
                high = middle
        return float(np.exp((low + high) / 2))

    low, high = -60.0, 60.0
    for _ in range(steps):
        middle = (low + high) / 2
        kappa = float(np.exp(middle))
        if (lam / (lam + gamma_of(kappa))).sum() + ridge / kappa > n:
            low = middle
        else:
            high = middle
    kappa = float(np.exp((low + high) / 2))
    gamma = gamma_of(kappa)
    learned = lam / (lam + gamma)
    z, q = learned.sum(), np.square(learned).sum()
    bias = ((1 - learned - kappa * lam / (lam + gamma) ** 2 * k / (k - q)) * v2).sum()
    return float((bias + noise) / (1 - (q * (k - 2 * z) + z**2) / (n * (k - q))))

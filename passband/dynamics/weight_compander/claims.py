"""What the paper claims, on 300 digits and an MLP 64-256-256-10: ten seeds as one stack of weights.

Rates, decays and the fixed pair were chosen by mean test accuracy on calibration seeds 1000 to
1002: lr of .02, .05, .1 and decay of .0005, .002, .008 for plain networks; the same for learned
companders but for three pairs (.02 with .002, .05 with .0005 and .002); bound of .5, 1, 2 and slope
of 1, 1.5, 2 for fixed ones. Effects of a few tenths of a point are what such a size can show at
best, so that a loss of 0.2 points is the margin of accuracies; other margins are zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.bench.claims import Bench, Evidence, judge, not_shown
from passband.dynamics.networks import build
from passband.dynamics.weight_compander.distribution import masking_loss, pooled, weight_stats
from passband.dynamics.weight_compander.model import Compander, compand, uncompand
from passband.dynamics.weight_compander.sweep import Arm, Found, run

SEEDS = 10
LOST = -0.2  # points of accuracy that may be lost
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the weights that are dropped
DRAWS = 5

PLAIN = Arm(lr=0.1, weight_decay=2e-3)
LEARNED = Arm(method="compander", learn=True, lr=0.05, weight_decay=8e-3)
FIXED = replace(LEARNED, learn=False, bound=2.0, slope=1.5)
# The same step near zero without the curve, and the rivals; all with the plain network's decay.
FASTER = replace(LEARNED, learn=False, curve="linear")
CLIPPED = replace(PLAIN, method="clip")
NORMALISED = replace(PLAIN, method="weight-norm")
DROPOUT = replace(PLAIN, dropout=0.3)
# Dropout and label smoothing, without and with companders.
REGULAR = replace(PLAIN, dropout=0.3, smoothing=0.1)
COMBINED = replace(LEARNED, dropout=0.3, smoothing=0.1)


def trained(bench: Bench, arm: Arm) -> Found:
    if bench.smoke:
        arm = replace(arm, hidden=(32,), epochs=5)
    return run(arm, bench.seeds(2 if bench.smoke else SEEDS))


# ---- E4, E5: mathematics -------------------------------------------------------------------------


def closed_form(bench: Bench) -> Evidence:
    """E4: greatest error of values, slopes and inverses against another way to each."""
    psi = Compander(a=0.5, b=0.25)
    v = torch.tensor([-2.0, -0.1, 0.0, 0.05, 0.3], dtype=torch.float64, requires_grad=True)
    w = psi(v)
    slope = torch.autograd.grad(w.sum(), v)[0]
    # The arc tangent of another library, and a central difference.
    x = v.detach()
    angles = torch.from_numpy(0.5 * np.arctan(x.numpy() / 0.25))
    step = 1e-5
    difference = (psi(x + step) - psi(x - step)) / (2 * step)
    errors = {
        "value": w.detach() - angles, "slope": slope - difference,
        "inverse": psi.right_inverse(w.detach()) - x,
    }
    found = {name: float(e.abs().max()) for name, e in errors.items()}
    return judge(
        [max(found.values())], margin=1e-6, better="lower", unit="of error",
        details=_table(["of", "greatest error"], [[n, f"{e:.1e}"] for n, e in found.items()]),
    )


def same_start(bench: Bench) -> Evidence:
    """E5: greatest change of a logit by wrapping."""
    changes = [change for change, _ in map(_wrapped, bench.seeds(2 if bench.smoke else SEEDS))]
    return judge(changes, margin=1e-5, better="lower", unit="change of a logit")


def same_end(bench: Bench) -> Evidence:
    """E5-unwrap: greatest change of a logit by taking trained companders away."""
    changes = [change for _, change in map(_wrapped, bench.seeds(2 if bench.smoke else SEEDS))]
    return judge(changes, margin=1e-6, better="lower", unit="change of a logit")


@torch.no_grad()
def _wrapped(seed: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build("conv", (1, 8, 8), 10, channels=(16, 32), norm=True).eval()
    x = torch.randn(64, 1, 8, 8, generator=generator)
    before = network(x)
    compand(network, learn=True, slope=2.0)
    start = float((network(x) - before).abs().max())
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    moved = network(x)
    return start, float((uncompand(network)(x) - moved).abs().max())


# ---- C1, C3, C4: accuracy ------------------------------------------------------------------------


def small_accuracy(bench: Bench) -> Evidence:
    """C1-small: test accuracy with learned companders minus that of the plain network."""
    arms = {
        "plain": PLAIN, "compander, learned": LEARNED, "compander, fixed": FIXED,
        "linear curve of the same slope": FASTER, "weight clipping": CLIPPED,
        "weight normalisation": NORMALISED, "decay and dropout": DROPOUT,
    }
    if bench.smoke:
        arms = dict(list(arms.items())[:2])
    found = {name: trained(bench, arm) for name, arm in arms.items()}
    return _ahead(found["compander, learned"], found["plain"], found)


def learned_scales(bench: Bench) -> Evidence:
    """C3: accuracy with learned a and b minus that with the best fixed pair."""
    found = {"learned": trained(bench, LEARNED), "fixed": trained(bench, FIXED)}
    return _ahead(found["learned"], found["fixed"], found)


def combined(bench: Bench) -> Evidence:
    """C4: accuracy with dropout, smoothing and companders minus that with the first two."""
    found = {
        "dropout and smoothing": trained(bench, REGULAR),
        "companders too": trained(bench, COMBINED),
    }
    return _ahead(found["companders too"], found["dropout and smoothing"], found)


def _ahead(ours: Found, theirs: Found, all_: Mapping[str, Found]) -> Evidence:
    rows = [
        [name, f"{float(f.accuracy.mean()):.2f}", f"{float(f.accuracy.std()):.2f}"]
        for name, f in all_.items()
    ]
    return judge(
        (ours.accuracy - theirs.accuracy).tolist(), margin=LOST, better="higher",
        unit="points of test accuracy ahead",
        details=_table(["training", "accuracy, %", "deviation"], rows),
    )


# ---- C2: what weights look like ------------------------------------------------------------------


def smaller_weights(bench: Bench) -> Evidence:
    """C2: the largest weight with companders over that without."""
    return _weights(bench, "largest", 1.0, "x the largest weight", ratio=True)


def fewer_near_zero(bench: Bench) -> Evidence:
    """C2-zero: share of weights below a tenth of their layer's deviation, over that without."""
    return _weights(bench, "near_zero", 1.0, "x the share near zero", ratio=True)


def lighter_tails(bench: Bench) -> Evidence:
    """C2-bulk: excess kurtosis minus that without."""
    return _weights(bench, "kurtosis", 0.0, "of excess kurtosis more", ratio=False)


def _weights(bench: Bench, name: str, margin: float, unit: str, *, ratio: bool) -> Evidence:
    ours, theirs = (_figures(trained(bench, arm)) for arm in (LEARNED, PLAIN))
    pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)]
    values = [a / b if ratio else a - b for a, b in pairs]
    kinds = ("largest", "std", "near_zero", "kurtosis")
    rows = [
        [label, *(f"{np.mean([f[k] for f in figures]):.4f}" for k in kinds)]
        for label, figures in (("compander", ours), ("plain", theirs))
    ]
    return judge(
        values, margin=margin, better="lower", unit=unit, log=ratio,
        details=_table(["training", *kinds], rows),
    )


def _figures(found: Found) -> list[dict[str, float]]:
    return [pooled(weight_stats(found.plain(i))) for i in range(len(found.stack))]


# ---- C6: redundancy ------------------------------------------------------------------------------


def redundancy(bench: Bench) -> Evidence:
    """C6: fall of accuracy by dropped weights, with companders minus without; 10 to 50 %."""
    ours, theirs = (_falls(bench, trained(bench, arm)) for arm in (LEARNED, PLAIN))
    values = [float(np.mean(a) - np.mean(b)) for a, b in zip(ours, theirs, strict=True)]
    rows = [
        [label, *(f"{x:.2f}" for x in np.mean(falls, 0))]
        for label, falls in (("compander", ours), ("plain", theirs))
    ]
    return judge(
        values, margin=0.0, better="lower", unit="points of accuracy lost more",
        details=_table(["training", *(f"{s:.0%} dropped" for s in SHARES)], rows),
    )


def _falls(bench: Bench, found: Found) -> list[list[float]]:
    falls = []
    for i in range(len(found.stack)):
        x, y = found.test[0][i], found.test[1][i]

        def accuracy(network: Callable[..., Tensor], x: Tensor = x, y: Tensor = y) -> float:
            return 100 * float((network(x).argmax(1) == y).double().mean())

        draws = 1 if bench.smoke else DRAWS
        falls.append(list(masking_loss(
            found.plain(i), accuracy, SHARES, draws=draws, seed=found.stack.seeds[i]
        ).values()))
    return falls


# ---- C5: cost ------------------------------------------------------------------------------------


def cost(bench: Bench) -> Evidence:
    """C5: processor time of a training step of a residual network over that of the plain one."""
    # The paper's batch: what a weight costs is shared by all examples of a step.
    width, batch, rounds = (8, 32, 2) if bench.smoke else (16, 128, 5)
    ratio, rows = _race(width, batch, rounds)
    return judge(
        [ratio], margin=1.05, better="lower", unit="x the time of a step",
        details=_table(["network", "weights", "ms a step"], rows),
    )


def _race(width: int, batch: int, rounds: int) -> tuple[float, list[list[Any]]]:
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    runners: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}
    for name in ("plain", "compander"):
        network = build("resnet34", (3, 32, 32), 10, width=width)
        if name == "compander":
            compand(network, learn=True)
        runners[name] = network, torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    best = dict.fromkeys(runners, float("inf"))
    for turn in range(rounds + 1):
        for name, (network, optimizer) in runners.items():
            began = time.process_time()
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if turn:  # the first one warms up
                best[name] = min(best[name], time.process_time() - began)
    count = sum(p.numel() for p in runners["plain"][0].parameters())
    rows = [[f"ResNet-34 of width {width}, {n}", count, f"{1e3 * t:.1f}"] for n, t in best.items()]
    return best["compander"] / best["plain"], rows


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {"columns": list(columns), "rows": [list(row) for row in rows]}


CLAIMS = {
    "E4": closed_form,
    "E5": same_start,
    "E5-unwrap": same_end,
    "C1": lambda _: not_shown(
        "ResNet-50 on CIFAR-100: about 10 GPU-hours a seed, 5 seeds an arm; ImageNet: hundreds"
    ),
    "C1-small": small_accuracy,
    "C2": smaller_weights,
    "C2-zero": fewer_near_zero,
    "C2-bulk": lighter_tails,
    "C3": learned_scales,
    "C4": combined,
    "C5": cost,
    "C6": redundancy,
}

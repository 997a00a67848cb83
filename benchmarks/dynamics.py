"""Speed of the dynamics family, as ratios measured in one run.

    python benchmarks/dynamics.py [--quick] [--only grok|...] [--json FILE]

grok      a training step with look-ups against products with one-hots, and several seeds as one
          stack of weights against a loop over them
risk      rf-eigen's predicted error against nested bisections of its two equations; regressions at
          many ridges and sizes at once against one solve for each

Works that are compared take turns in one process, and what is compared is the least processor time
of a call: what else the machine does falls on all of them alike. What gives other numbers is not
timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _plain_risk import bisected
from _timing import (
    cheapest,
    fix_threads,
    in_fresh_process,
    interleaved,
    machine,
    print_machine,
    print_table,
    seconds,
)
from torch import Tensor, nn

Row = dict[str, Any]
PRELOAD = ("torch",)


def raced(case: str, works: dict[str, Callable[[], Any]], rounds: int, each: int = 1) -> list[Row]:
    """Ours first: a row with the ratio of each rival's time to ours, a call being `each` steps."""
    times = {
        name: cheapest(calls) / each
        for name, calls in interleaved(works, rounds, turn=0.3).items()
    }
    ours = next(iter(times))
    return [
        {"case": case, "rival": name, "ours": times[ours], "theirs": taken,
         "ratio": taken / times[ours]}
        for name, taken in times.items() if name != ours
    ]


def same(a: Tensor, b: Tensor, what: str, tolerance: float = 1e-3) -> None:
    apart = float((a - b).abs().max() / b.abs().max())
    if not apart <= tolerance:
        raise SystemExit(f"{what}: results differ by {apart:.1e}: no use in timing them")


def show(title: str, rows: list[Row]) -> list[Row]:
    print_table(
        title, ("case", "against", "ours", "theirs", "ratio"),
        [(r["case"], r["rival"], seconds(r["ours"]), seconds(r["theirs"]), f"{r['ratio']:.2f}")
         for r in rows],
    )
    return rows


# ---- grok --------------------------------------------------------------------------------------


def grok_step(p: int, neurons: int, batch: int, rounds: int) -> list[Row]:
    from passband.dynamics.grok.model import QuadraticMLP, one_hot_mse

    model = QuadraticMLP(p, neurons)
    w_in = torch.cat([model.u, model.v]).detach().clone().requires_grad_()
    w_out = model.w.detach().clone().requires_grad_()
    pairs, labels = torch.randint(p, (batch, 2)), torch.randint(p, (batch,))
    hot = torch.cat([torch.eye(p)[pairs[:, 0]], torch.eye(p)[pairs[:, 1]]], 1)
    target = torch.eye(p)[labels]

    def looked_up() -> None:
        model.zero_grad(set_to_none=True)
        one_hot_mse(model(pairs), labels).backward()

    def multiplied() -> None:
        w_in.grad = w_out.grad = None
        nn.functional.mse_loss((hot @ w_in).square() @ w_out, target).backward()

    looked_up()
    multiplied()
    same(torch.cat([model.u.grad, model.v.grad]), w_in.grad, "gradients of the first layer")
    same(model.w.grad, w_out.grad, "gradients of the second layer")
    works = {"look-ups": looked_up, "one-hot products": multiplied}
    return raced(f"gradient, p = {p}, {neurons} neurons, {batch} pairs", works, rounds)


def grok_seeds(p: int, neurons: int, batch: int, count: int, steps: int, rounds: int) -> list[Row]:
    from passband.dynamics.grok.model import QuadraticMLP, one_hot_mse
    from passband.parts.seeds import train_seeds

    pairs, labels = torch.randint(p, (batch, 2)), torch.randint(p, (batch,))

    def start(seed: int) -> nn.Module:
        return QuadraticMLP(p, neurons)

    def stacked() -> Tensor:
        return train_seeds(
            start, lambda model, x, y: one_hot_mse(model(x), y), (pairs, labels), range(count),
            steps, 0.01, betas=(0.9, 0.98), weight_decay=1.0,
        ).losses

    def looped() -> Tensor:
        losses = torch.zeros(steps, count)
        for seed in range(count):
            torch.manual_seed(seed)
            model = start(seed)
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=1.0, fused=True
            )
            for step in range(steps):
                optimizer.zero_grad(set_to_none=True)
                loss = one_hot_mse(model(pairs), labels)
                loss.backward()
                optimizer.step()
                losses[step, seed] = loss.detach()
        return losses

    same(stacked(), looped(), "losses of the seeds", 0.05)
    works = {"one stack": stacked, "a loop": looped}
    return raced(f"{count} seeds, p = {p}, {neurons} neurons, {batch} pairs", works, rounds, steps)


def grok(quick: bool) -> list[Row]:
    cells = [(grok_step, (31, 192, 672, 5)), (grok_seeds, (11, 48, 64, 16, 20, 3))]
    if not quick:
        cells += [
            (grok_step, (97, 500, 4704, 5)), (grok_seeds, (31, 192, 64, 8, 20, 3)),
            (grok_seeds, (31, 192, 672, 8, 10, 3)), (grok_seeds, (97, 500, 4704, 3, 2, 3)),
        ]
    rows = [row for work, sizes in cells for row in in_fresh_process(work, *sizes)]
    return show("grok: a step of training", rows)


# ---- risk --------------------------------------------------------------------------------------


def risk_point(modes: int, steps: int, rounds: int) -> list[Row]:
    """n = 300, k = 1000, ridge 0.001, powerlaws i^-1.5."""
    from passband.dynamics.rf_eigen.model import predict_risk
    from passband.dynamics.rf_eigen.spectrum import Spectrum

    i = np.arange(1.0, modes + 1)
    full = Spectrum(i**-1.5, i**-1.5, 0.5)
    short = full.collapsed()
    works: dict[str, Callable[[], Any]] = {
        "predict_risk": lambda: float(predict_risk(full, 300, 1000, 1e-3).test),
        "the same, collapsed": lambda: float(predict_risk(short, 300, 1000, 1e-3).test),
        f"two bisections of {steps} steps": lambda: bisected(
            full.eigenvalues, full.power, 0.5, 300, 1000, 1e-3, steps
        ),
    }
    ours = torch.tensor(works["predict_risk"]())
    for name, work in works.items():
        same(ours, torch.tensor(work()), name, 1e-5)
    return raced(f"theory, {modes:,} modes", works, rounds)


def _gaussian_points(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Arc-cosine kernel [n + 200, n] and targets."""
    from passband.dynamics.random_features import arc_cosine

    rng = np.random.default_rng(0)
    x = rng.standard_normal((n + 200, 20))
    return arc_cosine(x, x[:n]), rng.standard_normal((n + 200, 1))


def risk_ridges(n: int, ridges: int, rounds: int) -> list[Row]:
    """Test errors at every ridge: one eigendecomposition, or a solve each."""
    from sklearn.kernel_ridge import KernelRidge

    from passband.dynamics.ridge_regression import kernel_errors

    (kernel, y), grid = _gaussian_points(n), np.geomspace(1e-3, 10, ridges)

    def one_by_one() -> list[float]:
        models = (KernelRidge(alpha=r, kernel="precomputed").fit(kernel[:n], y[:n]) for r in grid)
        return [float(np.square(m.predict(kernel[n:]) - y[n:]).mean()) for m in models]

    def at_once() -> np.ndarray:
        return kernel_errors(kernel[:n], y[:n], kernel[n:], y[n:], grid)[0]

    same(torch.tensor(at_once()), torch.tensor(one_by_one()), "errors", 1e-6)
    works = {"one decomposition": at_once, "KernelRidge for each": one_by_one}
    return raced(f"{ridges} ridges, n = {n}", works, rounds)


def risk_sizes(n: int, sizes: int, rounds: int) -> list[Row]:
    """1 / Tr K_m^-1 and test errors for growing m: one Cholesky factor, or an inverse each."""
    from passband.dynamics.rf_eigen.experiments import growing

    (kernel, y), stops = _gaussian_points(n), np.linspace(n // sizes, n, sizes).astype(int)

    def one_by_one() -> list[float]:
        found = []
        for m in stops:
            inverse = np.linalg.inv(kernel[:m, :m] + 1e-3 * np.eye(m))
            np.square(kernel[n:, :m] @ (inverse @ y[:m]) - y[n:]).mean()
            found.append(float(1 / np.trace(inverse)))
        return found

    def at_once() -> np.ndarray:
        return growing(kernel[:n], y[:n], kernel[n:], y[n:], 1e-3, stops).kappa

    same(torch.tensor(at_once()), torch.tensor(one_by_one()), "kappa", 1e-6)
    works = {"one factor": at_once, "an inverse for each": one_by_one}
    return raced(f"{sizes} sizes up to n = {n}", works, rounds)


def risk(quick: bool) -> list[Row]:
    cells = [(risk_point, (10_000, 60, 2)), (risk_ridges, (300, 30, 3)), (risk_sizes, (300, 20, 3))]
    if not quick:
        cells += [
            (risk_point, (100_000, 200, 2)), (risk_ridges, (1000, 30, 3)),
            (risk_sizes, (1500, 20, 3)),
        ]
    rows = [row for work, sizes in cells for row in in_fresh_process(work, *sizes)]
    return show("risk: rf-eigen's predictions, and regressions to compare them with", rows)


# ---- the command -----------------------------------------------------------------------------

# part -> its work, and the threads it runs on
PARTS: dict[str, tuple[Callable[[bool], list[Row]], int]] = {"grok": (grok, 1), "risk": (risk, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, (part, threads) in PARTS.items():
        if options.only not in (None, name):
            continue
        fix_threads(threads, PRELOAD)
        facts = machine(threads, ("numpy", "torch"))
        print_machine(facts)
        results[name] = {"machine": facts, "rows": part(options.quick)}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

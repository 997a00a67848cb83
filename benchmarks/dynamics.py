"""Speed of the dynamics family, as ratios measured in one run.

    python benchmarks/dynamics.py [--quick] [--only grok|...] [--json FILE]

compander   a companded weight and its gradients against the same formula in eager torch, and
            against torch's weight_norm, which does something else: a norm a row and no arc tangent
elr       the loss with its targets against the same with places as a list, and what a step costs
          more than with cross-entropy
grok      a training step with look-ups against products with one-hots, and several seeds as one
          stack of weights against a loop over them
risk      rf-eigen's predicted error against nested bisections of its two equations; regressions at
          many ridges and sizes at once against one solve for each
alignment hessian-align's penalty in closed form against graphs of gradients and random probes
orth      the penalty of orthogonal convolutions against its definition by a convolution, and a step
          with it against layers that are orthogonal by construction

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
    fix_threads,
    in_fresh_process,
    machine,
    print_machine,
    print_table,
    race,
    same,
    seconds,
)
from torch import Tensor, nn

Row = dict[str, Any]
PRELOAD = ("torch",)


def raced(case: str, works: dict[str, Callable[[], Any]], rounds: int, each: int = 1) -> list[Row]:
    """Ours first: a row with the ratio of each rival's time to ours, a call being `each` steps."""
    times = {name: taken / each for name, taken in race(works, rounds).items()}
    ours = next(iter(times))
    return [
        {"case": case, "rival": name, "ours": times[ours], "theirs": taken,
         "ratio": taken / times[ours]}
        for name, taken in times.items() if name != ours
    ]


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


# ---- orth --------------------------------------------------------------------------------------


def orth_penalty(shape: tuple[int, ...], stride: int, rounds: int) -> list[Row]:
    """Value and gradient; the definition is a convolution of the kernel with itself."""
    from passband.dynamics.orth_cnn.geometry import Geometry
    from passband.dynamics.orth_cnn.model import choose, lorth

    weight = (0.1 * torch.randn(shape)).requires_grad_()

    def gradient(method: str) -> Tensor:
        weight.grad = None
        lorth(weight, stride, method=method).backward()
        return weight.grad

    ours = choose(Geometry.of(shape, stride))
    works: dict[str, Callable[[], Any]] = {f"ours ({ours})": lambda: gradient("auto")}
    if ours != "conv":
        works["the definition"] = lambda: gradient("conv")
    for other in sorted({"fft", "pairs", "gemm"} - {ours}):
        works[other] = lambda other=other: gradient(other)
    for name, work in works.items():
        same(gradient("auto").clone(), work(), name)
    return raced(f"L_orth and gradient, {list(shape)}, stride {stride}", works, rounds)


def orth_step(channels: int, size: int, batch: int, rounds: int) -> list[Row]:
    """A forward and backward pass of a layer: with the penalty, or with a layer that is orthogonal
    by construction (orthogonium, if it is installed; torch's parametrisation of the matrix)."""
    from passband.dynamics.orth_cnn.alternatives import orthogonal_kernel_
    from passband.dynamics.orth_cnn.model import lorth

    x = torch.randn(batch, channels, size, size)
    circular = {"padding": 1, "padding_mode": "circular", "bias": False}
    plain = nn.Conv2d(channels, channels, 3, **circular)
    held = orthogonal_kernel_(nn.Conv2d(channels, channels, 3, **circular))

    def step(layer: nn.Module, penalised: bool = False) -> None:
        layer.zero_grad(set_to_none=True)
        loss = layer(x).square().mean()
        (loss + lorth(layer.weight) if penalised else loss).backward()

    works: dict[str, Callable[[], Any]] = {
        "conv + L_orth": lambda: step(plain, True), "conv alone": lambda: step(plain),
        "torch, orthogonal matrix": lambda: step(held),
    }
    try:
        from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d
    except ImportError:
        print("orthogonium is not installed: left out")
    else:
        built = AdaptiveOrthoConv2d(
            channels, channels, 3, stride=1, padding=1, padding_mode="circular", bias=False
        ).train()
        works["orthogonium, AOC"] = lambda: step(built)
    return raced(f"a step, {channels} channels, {batch} images of {size} x {size}", works, rounds)


def orth(quick: bool) -> list[Row]:
    cells = [(orth_penalty, ((64, 64, 3, 3), 1, 5)), (orth_penalty, ((128, 32, 3, 3), 1, 5)),
             (orth_step, (32, 16, 16, 5))]
    if not quick:
        cells += [
            (orth_penalty, ((256, 256, 3, 3), 1, 5)), (orth_penalty, ((512, 512, 3, 3), 1, 2)),
            (orth_penalty, ((128, 64, 3, 3), 2, 5)), (orth_penalty, ((64, 64, 7, 7), 1, 3)),
            (orth_step, (64, 32, 32, 3)),
        ]
    rows = [row for work, sizes in cells for row in in_fresh_process(work, *sizes)]
    return show("orth: the penalty of orthogonal convolutions", rows)


# ---- compander ---------------------------------------------------------------------------------


def compander_weight(outputs: int, inputs: int, rounds: int) -> list[Row]:
    """Forward and backward of one weight, learned a and b."""
    from torch.nn.utils.parametrizations import weight_norm
    from torch.nn.utils.parametrize import register_parametrization

    from passband.dynamics.weight_compander.model import compand, companders

    torch.manual_seed(0)
    ours = compand(nn.Linear(inputs, outputs, bias=False), learn=True)
    psi = companders(ours)[""]

    class Eager(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_a = nn.Parameter(psi.log_a.detach().clone())
            self.log_b = nn.Parameter(psi.log_b.detach().clone())

        def forward(self, v: Tensor) -> Tensor:
            return self.log_a.exp() * torch.atan(v / self.log_b.exp())

    eager = nn.Linear(inputs, outputs, bias=False)
    register_parametrization(eager, "weight", Eager())
    with torch.no_grad():
        eager.parametrizations.weight.original.copy_(ours.parametrizations.weight.original)
    normed = weight_norm(nn.Linear(inputs, outputs, bias=False))
    g = torch.randn(outputs, inputs)

    def gradients(layer: nn.Module) -> Callable[[], tuple[Tensor, ...]]:
        wanted = list(layer.parameters())
        return lambda: torch.autograd.grad(layer.weight, wanted, g)

    works = {
        "compander": gradients(ours), "eager formula": gradients(eager),
        "weight_norm": gradients(normed),
    }
    same(ours.weight.detach(), eager.weight.detach(), "weights")
    for a, b in zip(works["compander"](), works["eager formula"](), strict=True):
        same(a, b, "gradients")
    return raced(f"weight [{outputs}, {inputs}], forward and backward", works, rounds)


def compander(quick: bool) -> list[Row]:
    cells = [(64, 576, 5), (256, 1152, 5)]
    if not quick:
        cells += [(512, 4608, 5), (2048, 4096, 3)]
    rows = [row for sizes in cells for row in in_fresh_process(compander_weight, *sizes)]
    return show("compander: a weight and its gradients", rows)


# ---- elr ---------------------------------------------------------------------------------------


def elr_loss(batch: int, classes: int, examples: int, rounds: int) -> list[Row]:
    """Loss and gradient of the logits, targets moved."""
    from passband.dynamics.elr.model import ELRLoss

    logits = torch.randn(batch, classes, requires_grad=True)
    labels = torch.randint(classes, (batch,))
    index = torch.randperm(examples)[:batch]
    ours = ELRLoss(examples, classes)
    bare = ELRLoss(examples, classes, checks=False)
    table = torch.zeros(examples, classes)

    def by_list() -> Tensor:
        """As usually written: the places as a list, the softmax and the targets taken twice."""
        places = [int(i) for i in index]
        p = torch.clamp(nn.functional.softmax(logits, 1), 1e-4, 1 - 1e-4)
        q = p.detach()
        table[places] = 0.7 * table[places] + 0.3 * (q / q.sum(1, keepdim=True))
        term = (1 - (table[places] * p).sum(1)).log().mean()
        return nn.functional.cross_entropy(logits, labels) + 3.0 * term

    def gradient(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(loss(), logits)[0]

    works = {
        "elr": gradient(lambda: ours(logits, labels, index)),
        "elr without checks": gradient(lambda: bare(logits, labels, index)),
        "targets by a list": gradient(by_list),
        "cross-entropy": gradient(lambda: nn.functional.cross_entropy(logits, labels)),
    }
    same(works["elr"](), works["targets by a list"](), "gradients")
    return raced(f"loss, {batch} x {classes}, {examples:,} targets", works, rounds)


def elr_step(width: int, batch: int, rounds: int) -> list[Row]:
    """What it adds to a gradient of CIFAR's ResNet-34 of a width (64 is the paper's)."""
    from passband.dynamics.elr.model import ELRLoss
    from passband.dynamics.networks import build

    model = build("resnet34", (3, 32, 32), 10, width=width)
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    elr, index = ELRLoss(50_000, 10), torch.randperm(50_000)[:batch]

    def step(loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def work() -> None:
            model.zero_grad(set_to_none=True)
            loss(model(x)).backward()

        return work

    works = {
        "elr": step(lambda z: elr(z, labels, index)),
        "cross-entropy": step(lambda z: nn.functional.cross_entropy(z, labels)),
    }
    return raced(f"gradient, ResNet-34 of width {width}, {batch} images", works, rounds)


def elr(quick: bool) -> list[Row]:
    cells = [(elr_loss, (128, 10, 50_000, 5)), (elr_step, (8, 32, 3))]
    if not quick:
        cells += [
            (elr_loss, (128, 100, 50_000, 5)), (elr_loss, (256, 1000, 100_000, 5)),
            (elr_step, (32, 64, 3)),
        ]
    rows = [row for work, sizes in cells for row in in_fresh_process(work, *sizes)]
    return show("elr: a loss with a target for every example", rows)


# ---- alignment -----------------------------------------------------------------------------------


def alignment_step(
    d: int, classes: int, n: int, domains: int, probes: int, rounds: int
) -> list[Row]:
    """Penalty and its gradients in head and features: closed forms, or graphs of gradients."""
    from passband.dynamics.hessian_align.model import HessianAlign

    head = nn.Linear(d, classes)
    h = (torch.randn(domains, n, d) / d**0.5).requires_grad_()
    y = torch.randint(classes, (domains, n))
    weights = list(head.parameters())
    inputs = [*weights, h]

    def exact(estimator: str) -> list[Tensor]:
        value = HessianAlign(estimator=estimator, validate=False)(h, head, y)
        return [value, *torch.autograd.grad(value, inputs)]

    def flat(parts: Any) -> Tensor:
        return torch.cat([t.reshape(-1) for t in parts])

    def spread(rows: list[tuple[Tensor, Tensor]], mean: tuple[Tensor, Tensor]) -> list[Tensor]:
        g, v = (t.detach() for t in mean)
        value = sum((a - g).square().sum() + (b - v).square().sum() for a, b in rows) / domains
        return [value, *torch.autograd.grad(value, inputs)]

    def losses() -> list[Tensor]:
        each = [nn.functional.cross_entropy(head(h[e]), y[e]) for e in range(domains)]
        return [*each, torch.stack(each).mean()]

    def by_graphs() -> list[Tensor]:
        rows = []
        for loss in losses():
            g = flat(torch.autograd.grad(loss, weights, create_graph=True))
            norm = g.norm()
            rows.append((g, norm * flat(torch.autograd.grad(norm, weights, create_graph=True))))
        return spread(rows[:-1], rows[-1])

    def by_probes() -> list[Tensor]:
        rows = []
        for loss in losses():
            g = flat(torch.autograd.grad(loss, weights, create_graph=True))
            total = torch.zeros_like(g)
            for _ in range(probes):
                z = torch.randint(0, 2, g.shape).to(g) * 2 - 1
                total = total + z * flat(torch.autograd.grad(g @ z, weights, create_graph=True))
            rows.append((g, total / probes))
        return spread(rows[:-1], rows[-1])

    same(flat(exact("hgp")), flat(by_graphs()), "penalties and gradients")
    case = f"{domains} x {n} examples, {d} features, {classes} classes"
    hgp = {"closed form, Hg": lambda: exact("hgp"), "graphs of gradients": by_graphs}
    diagonal = {
        "closed form, diagonal": lambda: exact("diag_exact"), f"{probes} probes": by_probes,
    }
    return raced(f"Hg, {case}", hgp, rounds) + raced(f"diagonal, {case}", diagonal, rounds)


def alignment(quick: bool) -> list[Row]:
    cells = [(alignment_step, (256, 7, 32, 3, 30, 3))]
    if not quick:
        cells += [(alignment_step, (2048, 7, 32, 3, 300, 2))]
    rows = [row for work, sizes in cells for row in in_fresh_process(work, *sizes)]
    return show("alignment: hessian-align's penalty, with its gradients", rows)


# ---- the command -----------------------------------------------------------------------------

# part -> its work, and the threads it runs on
PARTS: dict[str, tuple[Callable[[bool], list[Row]], int]] = {
    "compander": (compander, 1), "elr": (elr, 1),
    "grok": (grok, 1), "risk": (risk, 1), "orth": (orth, 1),
    "alignment": (alignment, 1),
}


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

"""Speed of the speech family, as ratios measured in one run.

    python benchmarks/speech.py [--quick] [--only step|vocode|realtime] [--json FILE]

step      forward pass and training step of each network against the same as usually written, with
          the same weights and equal outputs, on one thread
vocode    iSTFTNet against HiFi-GAN, the published generators, on two threads
realtime  real-time factors of the systems on two threads: seconds of work a second of sound

Works that are compared take turns in one process, and what is compared is the least processor time
of a call: what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _plain_speech import four_products, plain_tiger, zeros_inserted
from _timing import (
    fix_threads,
    in_fresh_process,
    interleaved,
    machine,
    print_machine,
    print_table,
    race,
    same,
    seconds,
)
from torch import Tensor, nn

from passband.api import create
from passband.data.speech.pairs import Example
from passband.parts.losses.separation import separation_loss
from passband.parts.ncsnpp import NCSNpp
from passband.speech.tiger.weights import from_published

Row = dict[str, Any]
PRELOAD = ("_plain_speech", "scipy.signal")
# what -> least ratio of processor time of the training step: the aims
AIMS = {"tiger": 3.0, "sgmse": 2.0}


def raced(case: str, works: dict[str, Callable[[], Any]], rounds: int) -> list[Row]:
    """Ours first: rows of each work with its ratio to the plain form."""
    times = race(works, rounds)
    rows = []
    for what in ("forward", "training step"):
        ours, plain = times[f"{what}, ours"], times[f"{what}, plain"]
        rows.append({"case": case, "what": what, "ours": ours, "plain": plain,
                     "ratio": plain / ours})
    return rows


def published_weights(*sizes: Any) -> dict[str, Tensor]:
    """Random weights of TIGER as its authors name them, from the tests' own formulation."""
    path = Path(__file__).parents[1] / "tests" / "speech" / "tiger_plain.py"
    spec = importlib.util.spec_from_file_location("tiger_plain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.weights(*sizes)


def descend(parameters: Any, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step of Adam."""
    optimizer = torch.optim.Adam(list(parameters), lr=1e-6)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return run


# ---- step ------------------------------------------------------------------------------------


def tiger(preset: str, samples: int, batch: int, rounds: int) -> list[Row]:
    system = create("tiger", preset=preset)
    c, network = system.config, system.network
    for part in network.modules():  # dropout would make the two draw apart
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    drawn = published_weights(network.widths, c.channels, c.hidden, c.depth, c.talkers)
    weights = {name: tensor.float().requires_grad_() for name, tensor in drawn.items()}
    network.load_state_dict(from_published({n: t.detach() for n, t in weights.items()}, network))
    x = torch.randn(batch, samples)
    target = torch.stack([0.7 * x, 0.3 * x], 1) + 0.1 * torch.randn(batch, 2, samples)
    plain = partial(
        plain_tiger, weights, x, network.widths, sources=c.talkers, iterations=c.iterations,
        depth=c.depth, n_fft=c.n_fft, hop=c.hop_length,
    )
    with torch.no_grad():
        same(network(x), plain(), "tiger")
    return raced(f"tiger {preset}, {batch} x {samples / c.sample_rate:g} s", {
        "forward, ours": torch.no_grad()(lambda: network(x)),
        "forward, plain": torch.no_grad()(plain),
        "training step, ours": descend(
            network.train().parameters(), lambda: separation_loss(network(x), target)
        ),
        "training step, plain": descend(
            weights.values(), lambda: separation_loss(plain(), target)
        ),
    }, rounds)


def frcrn(preset: str, samples: int, batch: int, rounds: int) -> list[Row]:
    system = create("frcrn", preset=preset)
    network = system.network
    clean = torch.randn(batch, samples)
    noisy = clean + 0.3 * torch.randn(batch, samples)

    def form(context: Any, train: bool) -> Callable[[], Any]:
        def forward() -> Tensor:
            network.eval()
            with torch.no_grad(), context():
                return network(noisy)

        def loss() -> Tensor:
            network.train()
            return system.objective(network, Example(noisy, clean))[0]

        step = descend(network.parameters(), loss)

        def run() -> None:
            with context():
                step()

        return run if train else forward

    same(form(nullcontext, False)(), form(four_products, False)(), "frcrn")
    return raced(f"frcrn {preset}, {batch} x {samples / system.config.sample_rate:g} s", {
        f"{'training step' if train else 'forward'}, {name}": form(context, train)
        for train in (False, True)
        for name, context in (("ours", nullcontext), ("plain", four_products))
    }, rounds)


def sgmse(sizes: dict[str, Any], frames: int, batch: int, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    network = NCSNpp(**sizes)
    x, t = torch.randn(batch, 4, network.bins, frames), torch.rand(batch) + 0.05

    def form(context: Any, train: bool) -> Callable[[], Any]:
        def forward() -> Tensor:
            with torch.no_grad(), context():
                return network(x, t)

        trained = [p for p in network.parameters() if p.requires_grad]
        step = descend(trained, lambda: network(x, t).square().mean())

        def run() -> None:
            with context():
                step()

        return run if train else forward

    same(form(nullcontext, False)(), form(zeros_inserted, False)(), "sgmse")
    case = f"sgmse, width {sizes['width']}, {batch} x {network.bins} x {frames}"
    return raced(case, {
        f"{'training step' if train else 'forward'}, {name}": form(context, train)
        for train in (False, True)
        for name, context in (("ours", nullcontext), ("plain", zeros_inserted))
    }, rounds)


SMALL_SCORE = {"bins": 64, "width": 24, "multipliers": (1, 2, 2, 2), "blocks": 1}


def step(quick: bool) -> list[Row]:
    rounds = 2 if quick else 5
    works: list[Callable[[], list[Row]]] = [
        partial(tiger, "tiny" if quick else "small", 8_000 if quick else 16_000, 2, rounds),
        partial(frcrn, "tiny", 8_000, 4, rounds),
        partial(sgmse, SMALL_SCORE, 64, 4, rounds),
    ]
    if not quick:
        works.append(partial(frcrn, "small", 8_000, 2, 3))
    rows = [row for work in works for row in in_fresh_process(_call, work)]
    print_table(
        "step: processor time of one thread, and how many times the usual form takes",
        ("case", "what", "ours", "as usual", "ratio"),
        [(r["case"], r["what"], seconds(r["ours"]), seconds(r["plain"]), f"{r['ratio']:.2f}")
         for r in rows],
    )
    for name, aim in AIMS.items():
        met = [r["ratio"] for r in rows if r["case"].startswith(name) and "step" in r["what"]]
        print(f"  aim: a training step of {name} {aim:g} times as fast: {max(met):.2f}")
    return rows


def _call(work: Callable[[], list[Row]]) -> list[Row]:
    return work()


# ---- vocode ----------------------------------------------------------------------------------


def generators(version: str, frames: int, rounds: int) -> list[Row]:
    mel = torch.randn(80, frames) - 4
    names = {"istftnet": f"{version}-c8c8i", "hifi-gan": version}
    systems = {name: create(name, preset=preset) for name, preset in names.items()}
    taken = interleaved(
        {name: partial(system.vocode, mel) for name, system in systems.items()}, rounds
    )
    length = frames * 256 / 22_050
    times = {name: min(wall for wall, _ in calls) for name, calls in taken.items()}
    return [{
        "version": version, **{name: length / t for name, t in times.items()},
        "ratio": times["hifi-gan"] / times["istftnet"],
    }]


def vocode(quick: bool) -> list[Row]:
    frames, rounds = (86, 2) if quick else (345, 5)
    versions = ("v2",) if quick else ("v1", "v2", "v3")
    rows = [r for v in versions for r in in_fresh_process(generators, v, frames, rounds)]
    print_table(
        f"vocode: times real time, {frames * 256 / 22_050:.1f} s, by the clock",
        ("version", "iSTFTNet C8C8I", "HiFi-GAN", "ratio"),
        [(r["version"], f"{r['istftnet']:.2f}", f"{r['hifi-gan']:.2f}", f"{r['ratio']:.2f}")
         for r in rows],
    )
    return rows


# ---- realtime --------------------------------------------------------------------------------


def factor(name: str, preset: str, length: float, verb: str) -> list[Row]:
    system = create(name, preset=preset)
    rate = system.config.sample_rate
    wave = np.random.default_rng(0).normal(0, 0.1, round(length * rate)).astype(np.float32)
    given = system.analyse(wave) if verb == "vocode" else wave
    [calls] = interleaved({name: lambda: getattr(system, verb)(given)}, rounds=2).values()
    return [{"system": name, "preset": preset, "seconds": length,
             "factor": min(wall for wall, _ in calls) / length}]


def realtime(quick: bool) -> list[Row]:
    cells = [
        ("tiger", "smoke", 2.0, "separate"), ("frcrn", "tiny", 4.0, "enhance"),
        ("istftnet", "small", 4.0, "vocode"),
    ]
    if not quick:
        cells += [
            ("tiger", "small", 10.0, "separate"), ("tiger", "paper", 4.0, "separate"),
            ("frcrn", "small", 10.0, "enhance"), ("frcrn", "released", 4.0, "enhance"),
            ("sgmse", "small", 2.0, "enhance"), ("istftnet", "paper", 4.0, "vocode"),
        ]
    rows = [r for cell in cells for r in in_fresh_process(factor, *cell)]
    print_table(
        "realtime: seconds of work for a second of sound",
        ("system", "preset", "sound", "real-time factor"),
        [(r["system"], r["preset"], f"{r['seconds']:g} s", f"{r['factor']:.3f}") for r in rows],
    )
    return rows


# ---- the command -----------------------------------------------------------------------------

# part -> its work, and the threads it runs on
PARTS: dict[str, tuple[Callable[[bool], list[Row]], int]] = {
    "step": (step, 1), "vocode": (vocode, 2), "realtime": (realtime, 2),
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

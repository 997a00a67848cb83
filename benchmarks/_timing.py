"""What all benchmarks share: fresh processes with fixed threads, medians, memory, tables.

>>> def work(n):
...     return measure(lambda: sum(range(n)), repeats=5)
>>> in_fresh_process(work, 10_000).seconds                     # 0.0002
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import psutil

from passband.bench.memory import PeakMemory

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Medians over calls of seconds by the clock and of the processor (all threads together: on a
    busy machine the steadier one), and the highest memory above the start's."""

    seconds: float
    processor: float
    bytes: int
    repeats: int


def measure(
    work: Callable[[], Any], repeats: int, limit: float = math.inf, warm: bool = False
) -> Cost:
    """Call `work` up to `repeats` times, but not again once `limit` seconds are spent.

    warm: one call goes ahead untimed, unless it alone takes the limit.
    """
    calls: list[tuple[float, float]] = []
    gc.collect()
    with PeakMemory() as peak:
        while len(calls) < repeats + warm and sum(wall for wall, _ in calls) < limit:
            start, busy = time.perf_counter(), time.process_time()
            work()
            calls.append((time.perf_counter() - start, time.process_time() - busy))
    kept = calls[1:] if warm and len(calls) > 1 else calls
    wall, processor = map(statistics.median, zip(*kept, strict=True))
    return Cost(wall, processor, peak.bytes, len(kept))


def interleaved(
    works: Mapping[str, Callable[[], Any]], rounds: int, turn: float = 0.0,
    prepare: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every call by the clock and of the processor, of works that take turns.

    What else the machine does then falls on all alike. One turn of each ahead of the rounds is not
    counted.

    turn     seconds that a turn should take; a short work is called several times in it
    prepare  called ahead of each call, untimed; its result is what the work is called with
    """
    prepare, found = prepare or {}, {name: [] for name in works}
    calls = dict.fromkeys(works, 1)
    order = list(works)
    for number in range(rounds + 1):
        for name in order:
            for _ in range(calls[name]):
                given = (prepare[name](),) if name in prepare else ()
                gc.collect(0)
                start, busy = time.perf_counter(), time.process_time()
                works[name](*given)
                cost = (time.perf_counter() - start, time.process_time() - busy)
                if number:
                    found[name].append(cost)
            if not number:
                calls[name] = max(1, min(50, round(turn / max(cost[1], 1e-6))))
        order = order[1:] + order[:1]  # nobody always follows the same neighbour
    return found


def cheapest(calls: Sequence[tuple[float, float]]) -> float:
    """The least processor time of a call: on a busy machine the steadiest estimate of its cost.

    Of two equal works on two cores under a load of 20, ratios of the least times are within 4 % of
    one, those of medians within 8 %.
    """
    return min(busy for _, busy in calls)


def race(
    works: Mapping[str, Callable[[], Any]], rounds: int, turn: float = 0.3
) -> dict[str, float]:
    """The least processor time of a call of each, taken in turns."""
    return {name: cheapest(calls) for name, calls in interleaved(works, rounds, turn).items()}


def same(ours: Any, other: Any, what: str, tolerance: float = 1e-3) -> None:
    """Stops where results of two works differ by more than that, relative to the largest."""
    a, b = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (ours, other))
    apart = float(np.abs(a - b).max() / np.abs(b).max())
    if not apart <= tolerance:
        raise SystemExit(f"{what}: results differ by {apart:.1e}: no use in timing them")


def fix_threads(count: int, preload: Sequence[str]) -> None:
    """Threads of BLAS and torch in the processes that follow, which start with `preload` imported.

    The libraries read the environment once, when they are loaded: hence new processes.
    """
    for name in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = str(count)
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(preload))


def in_fresh_process(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """The result of a module's function called in a process of its own: clean peaks and caches.

    Raises `MemoryError` when the process was killed.
    """
    if sys.stderr.isatty():
        print(f"... {work.__name__} {' '.join(map(str, args))}", file=sys.stderr)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(work, *args, **options).result()
        except BrokenProcessPool:
            raise MemoryError(f"{work.__name__}{args} was killed") from None


def exponent(
    sizes: Sequence[float], costs: Sequence[float], least: float = 0.0, last: int = 3
) -> float | None:
    """p of cost ~ size^p, least squares in logarithms over the last points above `least`."""
    pairs = [(math.log(s), math.log(c)) for s, c in zip(sizes, costs, strict=True) if c > least]
    if len(pairs) < 2:
        return None
    return statistics.linear_regression(*zip(*pairs[-last:], strict=True)).slope


def machine(threads: int, packages: Sequence[str] = ("numpy", "scipy", "torch")) -> dict[str, Any]:
    """Facts that timings depend on."""
    return {
        "processor": _processor(), "cores": os.cpu_count(), "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load": round(psutil.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


# ---- printing --------------------------------------------------------------------------------


def print_machine(facts: dict[str, Any]) -> None:
    print(" | ".join(f"{name} {value}" for name, value in facts.items()))
    if facts["load"] + facts["threads"] > facts["cores"] + 0.5:
        print(f"Other work shares the {facts['cores']} cores: absolute times are too long.")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns: words to the left, numbers to the right."""
    print(f"\n{title}")
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    numeric = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows)
               for i in range(len(header))]
    for number, line in enumerate(lines):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  " + "  ".join(cells).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))


def seconds(value: float | None) -> str:
    """12.3 s, 45.6 ms; - for None."""
    if value is None:
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def megabytes(value: int) -> str:
    return f"{value / 1e6:.0f} MB"

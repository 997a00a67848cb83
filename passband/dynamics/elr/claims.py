"""What the paper claims, on 1,197 digits of which 36 % are labelled wrong.

Five seeds draw noise, weights and batches; all of them are one stack of weights (`experiments`).
Cross-entropy is the same run with lam = 0. It must learn wrong labels by heart here, or there would
be nothing to show: C5 says whether it does. Margins of accuracies and of AUROC are those of the
expectations that were written down before anything was run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from passband.bench.claims import Bench, Evidence, judge, not_shown
from passband.bench.task import Data
from passband.data.labelled.digits import symmetric_noise
from passband.dynamics.elr.experiments import Learned, Setting, learn
from passband.dynamics.elr.system import ELR
from passband.dynamics.elr.theory import Story, linear_memorisation

SEEDS, PAIRS = 5, 3  # seeds of one network, of ELR+
NAMED = {"symmetric": (3.0, 0.7), "pair": (1.0, 0.9)}  # lam, beta by noise
# Proofs of seconds: 300 digits, a smaller network.
SMOKE: dict[str, Any] = {"size": "smoke", "hidden": (256, 256), "epochs": 80, "batch_size": 32}


@lru_cache(maxsize=8)
def _learned(setting: Setting, seeds: tuple[int, ...]) -> list[Learned]:
    """Several claims look at the same runs: in one process they are trained once."""
    return learn(setting, seeds)


def runs(bench: Bench, noise: str, *, elr: bool) -> list[Learned]:
    lam, beta = NAMED[noise]
    setting = Setting(
        noise=noise, lam=lam if elr else 0.0, beta=beta, **(SMOKE if bench.smoke else {})
    )
    return _learned(setting, tuple(bench.seeds(1 if bench.smoke else SEEDS)))


# ---- C1: accuracy ------------------------------------------------------------------------------


def more_accurate(bench: Bench) -> Evidence:
    """C1: points of clean test accuracy over cross-entropy, both after the last epoch."""
    return _gained(bench, "symmetric", margin=8.0)


def more_accurate_than_stopping_early(bench: Bench) -> Evidence:
    """C1-best: the same over cross-entropy at the epoch that noisy validation likes best."""
    return _gained(bench, "symmetric", margin=0.0, best=True)


def more_accurate_on_pairs(bench: Bench) -> Evidence:
    """C1-asym: the same where digits are labelled as one that looks like them."""
    return _gained(bench, "pair", margin=0.0)


def _gained(bench: Bench, noise: str, margin: float, best: bool = False) -> Evidence:
    ours, plain = (runs(bench, noise, elr=elr) for elr in (True, False))
    values = [
        100 * (a.test - (b.best if best else b.test)) for a, b in zip(ours, plain, strict=True)
    ]
    return judge(
        values, margin=margin, better="higher", unit="points", details=_table(ours, plain)
    )


# ---- C5: memory --------------------------------------------------------------------------------


def not_by_heart(bench: Bench) -> Evidence:
    """C5: share of wrong labels that ELR gives back."""
    # 300 digits are easier to know by heart: the smaller proof asks for less than half.
    return _memorised(bench, elr=True, margin=50.0 if bench.smoke else 15.0, better="lower")


def by_heart_without(bench: Bench) -> Evidence:
    """C5-ce: the same of cross-entropy, whose accuracy on all given labels is in the table."""
    return _memorised(bench, elr=False, margin=80.0, better="higher")


def _memorised(bench: Bench, *, elr: bool, margin: float, better: Any) -> Evidence:
    found = runs(bench, "symmetric", elr=elr)
    return judge(
        [100 * run.memory["memorised"] for run in found], margin=margin, better=better,
        unit="% of the wrong labels", details=_table(*((found, []) if elr else ([], found))),
    )


# ---- C6: finding wrong labels --------------------------------------------------------------------


def flags(bench: Bench) -> Evidence:
    """C6: AUROC of 1 - T[y] against the truth."""
    return _flagged(bench, "auroc", 0.95, "AUROC")


def flags_precisely(bench: Bench) -> Evidence:
    """C6-precision: share of wrong labels among the highest scores that hold 90 % of them."""
    return _flagged(bench, "precision_at_recall", 0.85, "precision at recall 0.9")


def _flagged(bench: Bench, name: str, margin: float, unit: str) -> Evidence:
    found = runs(bench, "symmetric", elr=True)
    return judge(
        [run.suspects.judged(run.wrong)[name] for run in found], margin=margin, better="higher",
        unit=unit, details=_table(found, []),
    )


def _table(ours: Sequence[Learned], plain: Sequence[Learned]) -> dict[str, Any]:
    rows = [
        [name, run.seed, *(
            f"{100 * value:.1f}" for value in (
                run.test, run.best, run.fitted, run.memory["memorised"], run.memory["recovered"]
            )
        )]
        for name, found in (("elr", ours), ("cross-entropy", plain)) for run in found
    ]
    return {
        "columns": [
            "", "seed", "test %", "at best epoch", "given labels %", "memorised %", "recovered %",
        ],
        "rows": rows,
    }


# ---- C3: two networks ----------------------------------------------------------------------------


def two_are_no_worse(bench: Bench) -> Evidence:
    """C3: ELR+ minus ELR in points, both for 40 epochs of each network; 1 may be lost."""
    found = [_pair(seed, bench.smoke) for seed in _pair_seeds(bench)]
    return judge(
        [row["plus"] - row["elr"] for row in found], margin=-1.0, better="higher", unit="points",
        details=_pair_table(found),
    )


def teachers_are_ahead(bench: Bench) -> Evidence:
    """C3-teacher: test accuracy of teachers minus that of their students, mean over training.

    The first quarter, in which a teacher is almost its student, and the last, after the drop of the
    learning rate, are left out.
    """
    found = [_pair(seed, bench.smoke) for seed in _pair_seeds(bench)]
    return judge(
        [row["teacher"] - row["student"] for row in found], margin=0.0, better="higher",
        unit="points", details=_pair_table(found),
    )


def _pair_seeds(bench: Bench) -> list[int]:
    return bench.seeds(1 if bench.smoke else PAIRS)


def _pair_table(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {
        "columns": ["ELR+ %", "ELR %", "teachers on the way", "students on the way"],
        "rows": [
            [f"{row[name]:.1f}" for name in ("plus", "elr", "teacher", "student")] for row in found
        ],
    }


@lru_cache(maxsize=8)
def _pair(seed: int, smoke: bool) -> Mapping[str, float]:
    """Accuracies in % of ELR+, of ELR with the same network, of teachers and of students."""
    parts = symmetric_noise(seed, "smoke" if smoke else "small")
    data = Data(train=parts.train, valid=parts.valid)
    looks: list[tuple[float, float]] = []
    found: dict[str, float] = {}
    for name, plus in (("plus", True), ("elr", False)):
        system = ELR.from_preset("plus-small", seed=seed, plus=plus, track_every=2)

        def watch(network: Any, step: int, system: ELR = system) -> dict[str, float]:
            if system.config.plus and system.method is not None:
                x = system.ready(parts.test.x)
                teachers = system.method.teachers.eval()
                looks.append((
                    _mean_accuracy([t.module for t in teachers], x, parts.test.y),
                    _mean_accuracy(list(network.networks), x, parts.test.y),
                ))
            return {}

        system.watch = (watch,)
        system.fit(data)
        given = torch.as_tensor(system.classify(parts.test.x))
        found[name] = 100 * float((given == parts.test.right).double().mean())
    middle = looks[len(looks) // 4 : 3 * len(looks) // 4]
    teacher, student = (100 * sum(column) / len(middle) for column in zip(*middle, strict=True))
    return {**found, "teacher": teacher, "student": student}


@torch.no_grad()
def _mean_accuracy(models: Sequence[Any], x: torch.Tensor, y: torch.Tensor) -> float:
    hits = [float((model(x).argmax(1) == y).double().mean()) for model in models]
    return sum(hits) / len(hits)


# ---- the theory ----------------------------------------------------------------------------------


def _story(bench: Bench) -> Story:
    return linear_memorisation(seeds=bench.seeds(1 if bench.smoke else SEEDS))


def early_learning(bench: Bench) -> Evidence:
    """E4: highest share of wrong rows that a linear model sees through."""
    found = _story(bench).recovered.amax(1)
    return judge(found.tolist(), margin=0.5, better="higher", unit="of wrong rows at the peak")


def late_memorisation(bench: Bench) -> Evidence:
    """E4-end: the share that is left after 2,000 steps."""
    found = _story(bench).recovered[:, -1]
    return judge(found.tolist(), margin=0.02, better="lower", unit="of wrong rows in the end")


def wrong_rows_take_over(bench: Bench) -> Evidence:
    """E4-gradient: a wrong row's part in the gradient over a clean row's, at its highest.

    Both begin at one half; the claim is void where the wrong rows' part never grows.
    """
    story = _story(bench)
    values = [
        float((wrong / clean).max()) if float(wrong.max()) > 0.5 else float("nan")
        for wrong, clean in zip(story.wrong, story.clean, strict=True)
    ]
    return judge(values, margin=1.5, better="higher", unit="times that of a clean row")


# ---- out of reach --------------------------------------------------------------------------------


def cifar100(bench: Bench) -> Evidence:
    return not_shown(
        "CIFAR-100, five kinds of noise x 3 seeds x 2 to 4 GPU hours "
        "(`passband train elr --preset paper-cifar100 --data DIR`)"
    )


def real_noise(bench: Bench) -> Evidence:
    return not_shown(
        "a million images of Clothing1M or 66,000 of mini-WebVision, pretrained ResNet-50 and "
        "InceptionResNetV2, about a GPU day each (presets plus-clothing1m and plus-webvision)"
    )


CLAIMS: dict[str, Callable[[Bench], Evidence]] = {
    "C1": more_accurate,
    "C1-best": more_accurate_than_stopping_early,
    "C1-asym": more_accurate_on_pairs,
    "C2": cifar100,
    "C3": two_are_no_worse,
    "C3-teacher": teachers_are_ahead,
    "C4": real_noise,
    "C5": not_by_heart,
    "C5-ce": by_heart_without,
    "C6": flags,
    "C6-precision": flags_precisely,
    "E4": early_learning,
    "E4-end": late_memorisation,
    "E4-gradient": wrong_rows_take_over,
}

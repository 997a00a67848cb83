"""What the paper of LT-SFT claims, on numerals in eight languages.

A small BERT knows all eight, three of them badly. It learns the last digit of English numerals and
is asked in those three; text of theirs has no digits. Each variant learns a module for each
language and one for the task, all from the same examples in the same number of steps, at its own
learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from passband.bench.budget import Budget
from passband.bench.claims import Bench, Evidence, judge, not_shown

STEPS = "750 steps"  # 150 for each of five modules
SEEDS = 3
DENSITIES = (0.01, 0.05, 0.2)
# Learning rates of highest zero-shot accuracy on calibration seed 1000, each from 1e-3, 3e-3 and
# 1e-2. Found there: 52.6, 1 % 48.9, 20 % 65.8, random 50.2, random 1 % 46.3, dense 62.6, task only
# 44.0, MAD-X 49.8.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LT-SFT": ("lt-sft", {"lr": 3e-3}),
    "LT-SFT 1 %": ("lt-sft", {"lr": 1e-2, "density": 0.01}),
    "LT-SFT 20 %": ("lt-sft", {"lr": 3e-3, "density": 0.2}),
    "RAND-SFT": ("lt-sft", {"lr": 3e-3, "criterion": "random"}),
    "RAND-SFT 1 %": ("lt-sft", {"lr": 3e-3, "criterion": "random", "density": 0.01}),
    "dense": ("lt-sft", {"lr": 1e-3, "criterion": "all"}),
    "task only": ("lt-sft", {"lr": 1e-2, "languages": False}),
    "MAD-X": ("mad-x", {"lr": 1e-2}),
}
# The task in five languages, with modules for all of them: 150 steps for each and for the task. Its
# rate is that of LT-SFT, without trials of its own.
SEVERAL: tuple[str, dict[str, Any]] = ("lt-sft", {"lr": 3e-3, "multi_source": True})
SEVERAL_STEPS = "1350 steps"
COLUMNS = (
    "zero_shot", "task_alone", "out_of_domain", "source_accuracy", "source_fit", "target_fit",
)


def exact(bench: Bench) -> Evidence:
    """C3-exact: entries too many or too few, tensors not restored, runs whose loss did not fall."""
    from passband.tuning.lt_sft.system import LotteryTicketSFT
    from passband.tuning.number_words import number_words

    faults, table = [], []
    for seed in bench.seeds(1 if bench.smoke else SEEDS):
        data = number_words(seed, "smoke")
        config = LotteryTicketSFT.configure("smoke", density=0.05)
        system = LotteryTicketSFT(config, seed=seed)
        report = system.fit(data.for_fit(), Budget(steps=60 if bench.smoke else 600))
        model = data.train.model()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        wanted = system.count(model)
        found = [
            sum(len(c.indices) for c in edit.changes.values() if c.kind == "sparse")
            for edit in (system.fitted(), *system.modules.values())
        ]
        applied = system.fitted().apply(model)
        changed = sum(not torch.equal(p, before[n]) for n, p in model.named_parameters())
        applied.revert()
        left = sum(not torch.equal(p, before[n]) for n, p in model.named_parameters())
        batch = data.train.collate([data.train.examples[i] for i in range(64)])
        losses = []
        with torch.no_grad():
            for moved in (model, system.adapt(data.train.model())):
                losses.append(float(data.train.output(moved, batch).loss))
        faults.append(sum(k != wanted for k in found) + left + (losses[1] >= losses[0]))
        table.append([seed, wanted, str(found), changed, left, *(f"{v:.3f}" for v in losses)])
        assert report["steps"] > 0
    return judge(
        faults, margin=0.5, better="lower", obtained=f"{sum(faults)} faults in {len(faults)} runs",
        details={
            "columns": ["seed", "K", "entries found", "tensors changed", "left after revert",
                        "loss before", "loss after"], "rows": table,
        },
    )


def transfers(bench: Bench) -> Evidence:
    """C1: composed accuracy minus that of the task alone. Margin: the sheet's 5 points."""
    return _gap(bench, "zero_shot", "LT-SFT", ["task only"], margin=5.0)


def beats_adapters(bench: Bench) -> Evidence:
    """C1-adapters: minus that of stacked adapters of equal size."""
    return _gap(bench, "zero_shot", "LT-SFT", ["MAD-X"], margin=0.0)


def beats_random(bench: Bench) -> Evidence:
    """C2: minus that of random masks; not worse by more than half a point."""
    return _gap(bench, "zero_shot", "LT-SFT", ["RAND-SFT"], margin=-0.5)


def fits_better(bench: Bench) -> Evidence:
    """C2-fit: masked-LM loss of the source language's module at 1 %, random minus learned."""
    return _gap(bench, "source_fit", "RAND-SFT 1 %", ["LT-SFT 1 %"], margin=0.0, unit="nats/token")


def beats_dense(bench: Bench) -> Evidence:
    """C3: composed accuracy at 5 % minus that of full task and language differences."""
    return _gap(bench, "zero_shot", "LT-SFT", ["dense"], margin=3.0)


def beats_dense_at_its_best(bench: Bench) -> Evidence:
    """C3-20: the same at 20 %.

    This density was chosen after the calibration seed had shown 5 % below dense: a model of 0.4 M
    parameters has less to spare than mBERT.
    """
    return _gap(bench, "zero_shot", "LT-SFT 20 %", ["dense"], margin=3.0)


def interior_optimum(bench: Bench) -> Evidence:
    """C3-density: best of 5 % and 20 % minus the better of 1 % and all."""
    rows = _rows(bench, ["LT-SFT 1 %", "LT-SFT", "LT-SFT 20 %", "dense"])
    gaps = [
        max(_number(rows["LT-SFT"][s]), _number(rows["LT-SFT 20 %"][s]))
        - max(_number(rows["LT-SFT 1 %"][s]), _number(rows["dense"][s]))
        for s in rows["LT-SFT"]
    ]
    evidence = judge(gaps, margin=0.0, better="higher", unit="points", details=_table(rows))
    dev = [
        sum(_number(row, "source_accuracy") for row in rows[name].values()) / len(gaps)
        for name in ("LT-SFT 1 %", "LT-SFT", "LT-SFT 20 %", "dense")
    ]
    said = ", ".join(f"{value:.1f}" for value in dev)
    return replace(evidence, obtained=f"{evidence.obtained}; source accuracy by density {said} %")


def several_sources(bench: Bench) -> Evidence:
    """C4: composed accuracy of a task learned in five languages minus that of one. Margin 0."""
    one = _rows(bench, ["LT-SFT"])["LT-SFT"]
    several = _cells(bench, {"several": SEVERAL}, SEVERAL_STEPS)["several"]
    gaps = [_number(several[seed]) - _number(one[seed]) for seed in one]
    return judge(
        gaps, margin=0.0, better="higher", unit="points",
        details=_table({"five sources": several, "one source": one}),
    )


def full_tables(bench: Bench) -> Evidence:
    return not_shown(
        "mBERT or XLM-R base, Wikipedia text of each language (10 GPU hours a language SFT), "
        "UD 2.7, MasakhaNER and AmericasNLI (2 to 5 hours a task)"
    )


# ---- cells ---------------------------------------------------------------------------------------


def _gap(
    bench: Bench, metric: str, ours: str, rivals: Sequence[str], *, margin: float,
    unit: str = "points",
) -> Evidence:
    """`ours` minus the best rival in a metric, by seed."""
    names = [ours, *rivals] if bench.smoke else list(VARIANTS)
    rows = _rows(bench, names)
    gaps = [
        _number(rows[ours][seed], metric) - max(_number(rows[r][seed], metric) for r in rivals)
        for seed in rows[ours]
    ]
    return judge(gaps, margin=margin, better="higher", unit=unit, details=_table(rows))


def _rows(bench: Bench, names: Sequence[str]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Rows by variant and seed."""
    return _cells(bench, {name: VARIANTS[name] for name in names}, STEPS)


def _cells(
    bench: Bench, variants: Mapping[str, tuple[str, dict[str, Any]]], steps: str
) -> dict[str, dict[int, Mapping[str, Any]]]:
    seeds = bench.seeds(1 if bench.smoke else SEEDS)
    cells = [
        {
            "system": system, "task": "number-words", "seed": seed, **overrides,
            **({"preset": "smoke", "size": "smoke", "budget": "60 steps"} if bench.smoke
               else {"budget": steps}),
        }
        for system, overrides in variants.values() for seed in seeds
    ]
    rows = iter(bench.run_many(cells))
    return {name: {seed: next(rows) for seed in seeds} for name in variants}


def _number(row: Mapping[str, Any], metric: str = "zero_shot") -> float:
    return float(row["metrics"][metric])


def _table(rows: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    return {
        "columns": ["variant", "seed", *COLUMNS],
        "rows": [
            [name, seed, *(f"{_number(row, column):.2f}" for column in COLUMNS)]
            for name, by_seed in rows.items() for seed, row in by_seed.items()
        ],
    }


CLAIMS = {
    "C3-exact": exact,
    "C1": transfers,
    "C1-adapters": beats_adapters,
    "C2": beats_random,
    "C2-fit": fits_better,
    "C3": beats_dense,
    "C3-20": beats_dense_at_its_best,
    "C3-density": interior_optimum,
    "C4": several_sources,
    "T1": full_tables,
}

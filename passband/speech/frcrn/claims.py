"""What the paper claims, on synthetic voices in generated noise at 8 kHz.

Networks of one size, equal steps, the published optimiser; its learning rate, 1e-2 falling to 0,
is the best of 1e-3, 4e-3 and 1e-2 for so few steps, for the CRN of 3e-3 and 1e-2 (seed 1000).
A first run on the judging seeds ended with inverted speech on seed 3 and had not begun to learn the
harmonics on one: hence the start with a passing mask, which is as good as the other on seeds 1000
to 1003, where neither fails, and 200 steps for the harmonics (seeds 1000 and 1001).
Margins were set before any run: 0.3 dB for frequency recurrence on
speech, 3 dB where it alone can tell voice from noise, 4 dB and 0.2 PESQ for enhancement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from passband.bench.budget import Budget
from passband.bench.claims import Bench, Evidence, judge, not_shown
from passband.bench.task import Data
from passband.speech.frcrn.harmonics import RATE, Harmonics
from passband.speech.frcrn.system import FRCRNEnhancer

SYSTEM, CRN = "frcrn", "crn"
LEAN = {"spare": False}  # without the modules that are never used: sizes are then comparable
ARMS: dict[str, dict[str, Any]] = {
    "frequency recurrence": {"system": SYSTEM, **LEAN},
    "larger convolutions": {"system": SYSTEM, "recurrence": "wide", **LEAN},
    "nothing in its place": {"system": SYSTEM, "recurrence": "none", **LEAN},
    "CRN": {"system": CRN},
}
SCORES = ("si_sdri", "pesq", "stoi")
Metrics = Mapping[str, float]


# ---- C1: frequency recurrence ------------------------------------------------------------------


def recurrence(bench: Bench) -> Evidence:
    """C1: dB of SI-SDR that frequency recurrence has over larger convolutions."""
    rows = _arms(bench, list(ARMS))
    return _gain(
        rows, "frequency recurrence", "larger convolutions", 0.3,
        "dB SI-SDR above a network of as many parameters without it",
    )


def above_crn(bench: Bench) -> Evidence:
    """C1-crn: dB of SI-SDR of the plain complex U-Net over a CRN."""
    rows = _arms(bench, ["larger convolutions", "CRN"])
    return _gain(
        rows, "larger convolutions", "CRN", 0.0, "dB SI-SDR above a CRN of as many parameters"
    )


def _gain(
    rows: Mapping[str, Sequence[Metrics]], ours: str, theirs: str, margin: float, unit: str
) -> Evidence:
    gains = [a["si_sdri"] - b["si_sdri"] for a, b in zip(rows[ours], rows[theirs], strict=True)]
    return judge(gains, margin=margin, better="higher", unit=unit, details=_table(rows))


def _arms(bench: Bench, names: Sequence[str]) -> dict[str, list[Metrics]]:
    seeds = bench.seeds(1 if bench.smoke else 4)
    common = _scale(bench, "150 steps")
    cells = [
        {**common, **ARMS[name], "seed": seed} for name in names for seed in seeds
    ]
    found = iter(row["metrics"] for row in bench.run_many(cells))
    return {name: [next(found) for _ in seeds] for name in names}


def _scale(bench: Bench, budget: str) -> dict[str, Any]:
    if bench.smoke:
        return {"task": "denoising", "size": "smoke", "preset": "smoke", "budget": "4 steps"}
    return {"task": "denoising", "preset": "tiny", "budget": budget}


def _table(rows: Mapping[str, Sequence[Metrics]]) -> dict[str, Any]:
    return {
        "columns": ["", *SCORES],
        "rows": [
            [name, *(f"{np.mean([m[score] for m in of]):.3f}" for score in SCORES)]
            for name, of in rows.items()
        ],
    }


def harmonics(bench: Bench) -> Evidence:
    """C1-harmonics: dB over the better ablation where a low tone decides about high ones.

    Three steps deep and without attention and recurrence in time, so that nothing but frequency
    recurrence reaches from 300 Hz to 1.9 kHz.
    """
    seeds = bench.seeds(1 if bench.smoke else 5)
    arms = ("fsmn", "wide", "none")
    rows = {arm: [_harmonics(bench, arm, seed) for seed in seeds] for arm in arms}
    gains = [
        ours - max(wide, none)
        for ours, wide, none in zip(rows["fsmn"], rows["wide"], rows["none"], strict=True)
    ]
    names = dict(zip(arms, ARMS, strict=False))
    return judge(
        gains, margin=3.0, better="higher", unit="dB SI-SDR above networks without it",
        details={
            "columns": ["", "si_sdr"],
            "rows": [[names[arm], f"{np.mean(of):.2f}"] for arm, of in rows.items()],
        },
    )


def _harmonics(bench: Bench, arm: str, seed: int) -> float:
    """SI-SDR in dB on new sounds after training."""
    from passband.parts.metrics.sdr import si_sdr

    system = FRCRNEnhancer.from_preset(
        "tiny", seed=seed, depth=3, attention="none", bottleneck="none", recurrence=arm,
        loss="si-snr", **LEAN,
    )
    data = Data(train=Harmonics(count=512, seed=2 * seed))
    system.fit(data, Budget(steps=4 if bench.smoke else 200))
    test = Harmonics(count=2 if bench.smoke else 20, seed=2 * seed + 1)
    return float(np.mean([float(si_sdr(system.enhance(e.input, RATE), e.target)) for e in test]))


# ---- C2, C3: how good it is --------------------------------------------------------------------


def enhances(bench: Bench) -> Evidence:
    """C2-small: improvement of SI-SDR; PESQ by 0.2 and STOI not lower have to hold as well."""
    seeds = bench.seeds(1 if bench.smoke else 3)
    common = _scale(bench, "400 steps")
    cells = [{**common, "system": SYSTEM, "seed": seed} for seed in seeds]
    after = [row["metrics"] for row in bench.run_many(cells)]
    before = [_unprocessed(seed, "smoke" if bench.smoke else "small") for seed in seeds]
    details = _table({"noisy": before, "enhanced": after})
    found = judge(
        [m["si_sdri"] for m in after], margin=4.0, better="higher", unit="dB SI-SDR",
        details=details,
    )
    pairs = list(zip(after, before, strict=True))
    others = (
        judge([a["pesq"] - b["pesq"] for a, b in pairs], margin=0.2, better="higher", unit="PESQ"),
        judge([a["stoi"] - b["stoi"] for a, b in pairs], margin=0.0, better="higher", unit="STOI"),
    )
    return _together(found, *others)


def _together(first: Evidence, *others: Evidence) -> Evidence:
    """The first, with the verdict of the one that is furthest from holding."""
    order = ("fails", "inconclusive", "holds")
    everything = (first, *others)
    verdict = min((e.verdict for e in everything), key=order.index)
    obtained = "; ".join(e.obtained for e in everything)
    return Evidence(**{**first.to_json(), "verdict": verdict, "obtained": obtained})


def _unprocessed(seed: int, size: Any) -> Metrics:
    """Figures of the noisy recordings themselves."""
    from passband.speech.scores import enhancement
    from passband.speech.tasks import TASKS

    test = TASKS["denoising"].data(seed, size).test
    return enhancement(_Nothing(), test)


class _Nothing:
    """Gives back what it gets."""

    def enhance(self, wave: Any, sample_rate: int | None = None) -> Any:
        return wave


# ---- C5: the joint loss ------------------------------------------------------------------------


def joint_loss(bench: Bench) -> Evidence:
    """C5: PESQ that the joint loss gains over SI-SNR alone; its masks have to be nearer as well."""
    seeds = bench.seeds(1 if bench.smoke else 4)
    # Selected by validation in both arms, so that validation figures are in the rows.
    common = {**_scale(bench, "150 steps"), "system": SYSTEM, "select": "highest si_snr"}
    cells = [{**common, "loss": loss, "seed": s} for loss in ("joint", "si-snr") for s in seeds]
    rows = bench.run_many(cells)
    joint, alone = rows[: len(seeds)], rows[len(seeds) :]
    pairs = list(zip(joint, alone, strict=True))
    found = judge(
        [a["metrics"]["pesq"] - b["metrics"]["pesq"] for a, b in pairs],
        margin=0.0, better="higher", unit="PESQ above SI-SNR alone",
        details=_table({
            "joint": [r["metrics"] for r in joint], "SI-SNR alone": [r["metrics"] for r in alone],
        }),
    )
    masks = judge(
        [a["spent"]["mask_error"] / b["spent"]["mask_error"] for a, b in pairs],
        margin=1.0, better="lower", unit="x the error of the mask",
    )
    return _together(found, masks)


CLAIMS = {
    "C1": recurrence,
    "C1-harmonics": harmonics,
    "C1-crn": above_crn,
    "C2-small": enhances,
    "C2": lambda _: not_shown(
        "VoiceBank+DEMAND (11,572 pairs at 16 kHz) and 100 epochs: about a GPU-week"
    ),
    "C3": lambda _: not_shown(
        "the DNS-Challenge 2020 corpus (some 500 hours of speech) and its test set: about a "
        "GPU-week"
    ),
    "C4": lambda _: not_shown("the challenge's blind test set and its listeners"),
    "C5": joint_loss,
}

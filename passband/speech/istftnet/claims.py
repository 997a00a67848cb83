"""What the paper of iSTFTNet claims, at a scale that two cores train in minutes.

Quality is the log-mel L1 distance of unheard voices after equal steps, 64 channels in the first
layer and discriminators of 1/16 width, where the paper has listening tests after 2.5 million steps.
Margins are those of general grounds: half as fast again for "1.7 times", 10 % for "as good".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from passband.bench.claims import Bench, Evidence, judge, not_shown
from passband.parts.mel_upsampler import LARGE, LIGHT, Upsampler, fused
from passband.speech.istftnet.model import ISTFTNet
from passband.speech.mb_melgan import MultiBandMelGAN

STEPS = "200 steps"
SEEDS = 3
GENERATORS: dict[str, dict[str, Any]] = {
    "v1": {"channels": 512, "rates": (8, 8, 2, 2)},
    "v2": {"channels": 128, "rates": (8, 8, 2, 2)},
    "v3": {"channels": 256, "rates": (8, 8, 4), "blocks": LIGHT},
}
# Counted in the papers' tables, in millions: ours have to round to them.
REPORTED = {"hifi-gan": 13.94, "c8c8i": 13.26}


# ---- speed and size ----------------------------------------------------------------------------


def as_fast(bench: Bench) -> Evidence:
    """C1-speed: time of HiFi-GAN V1 over that of V1-C8C8I, generators alone, one thread."""
    v = "v2" if bench.smoke else "v1"
    nets = {"hifi-gan": _hifi_gan(v), "c8c8i": _istftnet(v, (8, 8))}
    return _ratio_of_times(bench, nets, "hifi-gan", "c8c8i", margin=1.5)


def faster_with_less(bench: Bench) -> Evidence:
    """C2-speed: time of V1-C8C8I over that of V1-C8I; the paper has 3.25 (CPU)."""
    v = "v2" if bench.smoke else "v1"
    nets = {"c8c8i": _istftnet(v, (8, 8)), "c8i": _istftnet(v, (8,))}
    return _ratio_of_times(bench, nets, "c8c8i", "c8i", margin=2.0)


def small_variant_is_faster(bench: Bench) -> Evidence:
    """C3-speed: time of V2 over that of V2-C8C8C2I."""
    nets = {"hifi-gan": _hifi_gan("v2"), "c8c8c2i": _istftnet("v2", (8, 8, 2))}
    return _ratio_of_times(bench, nets, "hifi-gan", "c8c8c2i", margin=1.0)


def as_fast_as_multi_band(bench: Bench) -> Evidence:
    """C3-mb-speed: time of multi-band MelGAN over that of V2-C8C8I; 0.8 is slower by a quarter."""
    nets = {"mb-melgan": fused(MultiBandMelGAN()), "c8c8i": _istftnet("v2", (8, 8))}
    return _ratio_of_times(bench, nets, "mb-melgan", "c8c8i", margin=0.8)


def fewer_parameters(bench: Bench) -> Evidence:
    """C1-size: parameters of V1-C8C8I over those of V1."""
    with torch.device("meta"):
        nets = {"hifi-gan": _hifi_gan("v1", plain=False), "c8c8i": _istftnet("v1", (8, 8), False)}
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    alike = all(round(count / 1e6, 2) == REPORTED[name] for name, count in counts.items())
    return judge(
        [counts["c8c8i"] / counts["hifi-gan"] if alike else float("nan")], margin=1.0,
        better="lower", obtained=f"{counts['c8c8i']:,} against {counts['hifi-gan']:,}",
    )


def _hifi_gan(v: str, plain: bool = True) -> nn.Module:
    g = GENERATORS[v]
    kernels = tuple(2 * rate for rate in g["rates"])
    net = Upsampler(80, g["channels"], g["rates"], kernels, 1, g.get("blocks", LARGE))
    return nn.Sequential(fused(net) if plain else net, nn.Tanh())


def _istftnet(v: str, rates: Sequence[int], plain: bool = True) -> nn.Module:
    g = GENERATORS[v]
    net = ISTFTNet(80, g["channels"], rates, blocks=g.get("blocks", LARGE))
    return fused(net) if plain else net


def _ratio_of_times(
    bench: Bench, nets: Mapping[str, nn.Module], slow: str, fast: str, margin: float
) -> Evidence:
    """Processor time, in turn on the same mel; of each the least of five, once for each seed."""
    seconds = 1 if bench.smoke else 4
    mel = torch.randn(1, 80, seconds * 22_050 // 256)
    ratios, rows = [], []
    with _threads(1), torch.inference_mode():
        for _ in bench.seeds(1 if bench.smoke else SEEDS):
            times = _shortest(nets, mel, 2 if bench.smoke else 5)
            ratios.append(times[slow] / times[fast])
            rows.append([f"{seconds / times[name]:.2f}" for name in (slow, fast)])
    return judge(
        ratios, margin=margin, better="higher", log=True, unit="x as fast",
        details={"columns": [f"{slow}, x real time", f"{fast}, x real time"], "rows": rows},
    )


def _shortest(nets: Mapping[str, nn.Module], mel: Tensor, times: int) -> dict[str, float]:
    best: dict[str, float] = {}
    for turn in range(times + 1):  # the first warms up
        for name, net in nets.items():
            began = time.process_time()
            net(mel)
            spent = time.process_time() - began
            if turn:
                best[name] = min(best.get(name, spent), spent)
    return best


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- quality after equal steps -------------------------------------------------------------------

OURS: dict[str, Any] = {"system": "istftnet"}
THEIRS: dict[str, Any] = {"system": "hifi-gan"}
MULTI_BAND: dict[str, Any] = {"system": "mb-melgan"}


def as_good(bench: Bench) -> Evidence:
    """C1-quality: log-mel L1 of C8C8I over that of HiFi-GAN."""
    return _compare(bench, OURS, THEIRS, margin=1.10, better="lower", unit="x that of HiFi-GAN")


def worse_with_too_little(bench: Bench) -> Evidence:
    """C2: log-mel L1 of C8I over that of C8C8I."""
    return _compare(
        bench, OURS | {"rates": (8,)}, OURS, margin=1.10, better="higher", unit="x that of C8C8I"
    )


def depth_is_no_remedy(bench: Bench) -> Evidence:
    """C2-c8c1i: the same of C8C1I, which is as deep as C8C8I and does not up-sample."""
    return _compare(
        bench, OURS | {"rates": (8, 1)}, OURS, margin=1.0, better="higher", unit="x that of C8C8I"
    )


def small_variant_is_as_good(bench: Bench) -> Evidence:
    """C3: log-mel L1 of C8C8C2I over that of HiFi-GAN."""
    return _compare(
        bench, OURS | {"rates": (8, 8, 2)}, THEIRS, margin=1.10, better="lower",
        unit="x that of HiFi-GAN",
    )


def light_variant_is_worse(bench: Bench) -> Evidence:
    """C3-v3: the light blocks have no slack: C8C8I over HiFi-GAN, both with V3's."""
    return _compare(
        bench, OURS | {"blocks": "light"}, THEIRS | {"blocks": "light", "rates": (8, 8, 4)},
        margin=1.0, better="higher", unit="x that of HiFi-GAN",
    )


def better_than_multi_band(bench: Bench) -> Evidence:
    """C3-mb: log-mel L1 of C8C8I over that of multi-band MelGAN, each by its own losses."""
    return _compare(
        bench, OURS, MULTI_BAND, margin=1.0, better="lower", unit="x that of multi-band MelGAN"
    )


def activations(bench: Bench) -> Evidence:
    """A1: log-mel L1 with identity phase and softplus magnitude over that with sin and exp."""
    return _compare(
        bench, OURS | {"phase": "identity", "magnitude": "softplus"}, OURS, margin=1.0,
        better="higher", unit="x that of exp and sin",
    )


def _compare(
    bench: Bench, arm: Mapping[str, Any], rival: Mapping[str, Any], *, margin: float, better: Any,
    unit: str,
) -> Evidence:
    seeds = bench.seeds(1 if bench.smoke else SEEDS)
    scale: dict[str, Any] = {"task": "vocoding", "budget": STEPS}
    if bench.smoke:
        scale = {"task": "vocoding", "size": "smoke", "preset": "smoke", "budget": "3 steps"}
    rows = bench.run_many([{**scale, **cell, "seed": s} for cell in (arm, rival) for s in seeds])
    mine, others = rows[: len(seeds)], rows[len(seeds) :]
    ratios = [_mel(a) / _mel(b) for a, b in zip(mine, others, strict=True)]
    table = [
        [seed, *(f"{row['metrics'].get(name, float('nan')):.3f}"
                 for name in ("mel_l1", "mr_stft") for row in (a, b))]
        for seed, a, b in zip(seeds, mine, others, strict=True)
    ]
    names = [f"{name}, {who}" for name in ("log-mel L1", "M-STFT") for who in ("ours", "rival")]
    return judge(
        ratios, margin=margin, better=better, log=True, unit=unit,
        details={"columns": ["seed", *names], "rows": table},
    )


def _mel(row: Mapping[str, Any]) -> float:
    return float(row["metrics"].get("mel_l1", float("nan")))


# ---- out of reach --------------------------------------------------------------------------------


def beats_multi_band(bench: Bench) -> Evidence:
    return not_shown("LJSpeech, 2.5 million and 1 million steps, and listeners")


def in_text_to_speech(bench: Bench) -> Evidence:
    return not_shown(
        "LJSpeech, Conformer-FastSpeech 2, 2.5 million and 300,000 joint steps (about 2 weeks on a "
        "GPU) and listeners"
    )


CLAIMS: dict[str, Callable[[Bench], Evidence]] = {
    "C1-speed": as_fast,
    "C1-size": fewer_parameters,
    "C1-quality": as_good,
    "C2": worse_with_too_little,
    "C2-c8c1i": depth_is_no_remedy,
    "C2-speed": faster_with_less,
    "C3": small_variant_is_as_good,
    "C3-speed": small_variant_is_faster,
    "C3-v3": light_variant_is_worse,
    "C3-mb": better_than_multi_band,
    "C3-mb-speed": as_fast_as_multi_band,
    "C3-mb-melgan": beats_multi_band,
    "C4": in_text_to_speech,
    "A1": activations,
}

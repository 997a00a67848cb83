"""Speed and memory of the fine-tuning family, as ratios measured in one run.

    python benchmarks/tuning.py [--quick] [--only step|start|choice] [--threads 1] [--json FILE]

step       a training step (forward, backward, update) of every method on one model, and its memory
start      seconds until training can begin, of methods that decompose the weights, against peft's
choice     selecting entries, finding intruders, applying and reverting edits, fingerprints

Works that are compared take turns in one process, and what is compared is the least processor time
of a call: what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _methods import RANK, Arm, Job, Training, language, parts, references, sentences, systems
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

from passband.parts.edits import Block, Edit, LowRank, Sparse, fingerprint
from passband.parts.intruders import detect
from passband.parts.spectral import LinearMap
from passband.parts.tensor_memory import PeakTensors
from passband.tuning.ba_lora.model import BALoRA
from passband.tuning.baselines.lora.model import PeftAdapter, inject
from passband.tuning.corda.model import CorDA
from passband.tuning.intruder_dims.repair import Repair
from passband.tuning.lt_sft.selection import Moved, largest
from passband.tuning.models.sentences import minilm
from passband.tuning.sara.selection import select
from passband.tuning.sorsa.model import SORSA

Row = dict[str, Any]
PRELOAD = ("_methods", "peft", "transformers")


# ---- step ------------------------------------------------------------------------------------

JOBS: dict[str, Callable[[], Job]] = {
    "bytes 128": lambda: language("bytes 128", 4),
    "bytes 512": lambda: language("bytes 512", 1, width=512, ffn=1376, heads=8),
    "MiniLM": lambda: sentences("MiniLM", 8, 32),
}
QUICK: dict[str, Callable[[], Job]] = {
    "bytes 128": lambda: language("bytes 128", 1),
    "bytes 512, 2 blocks": lambda: language(
        "bytes 512, 2 blocks", 1, width=512, ffn=1376, layers=2, heads=8
    ),
}
# group -> (compared with the group, largest ratio of time, largest ratio of memory): the aims
AIMS: dict[str, list[tuple[str, float, float | None]]] = {
    "sparse": [("shira", 1.0, 1.0), ("lora", 1.0, None)],
    "block": [("shira", 1.0, 1.0), ("lora", 1.0, None)],
    "factors": [("lora", 1.05, None)],
    "ba-lora": [("pissa", 1.45, None)],
    "half": [("full", 0.92, None)],
}


def steps_on(job: Job, arms: Sequence[Arm], rounds: int, turn: float = 0.2) -> list[Row]:
    """Every method on its own copy of the job's model, taking turns."""
    runs, rows = {}, []
    for arm in arms:
        with PeakTensors() as kept:
            try:
                runs[arm.name] = Training(arm, job)
            except Exception as error:  # noqa: BLE001  one that fails is said, the rest measured
                print(f"{arm.name} on {job.name} is left out: {type(error).__name__}: {error}")
                continue
        run = runs[arm.name]
        run.optimizer.zero_grad(set_to_none=True)
        with PeakTensors() as memory:
            run.step()
        run.optimizer.zero_grad(set_to_none=True)
        rows.append({
            "job": job.name, "arm": arm.name, "group": arm.group, "trained": run.trained,
            "memory": memory.peak, "optimizer": run.optimizer_bytes,
            "kept": kept.alive - run.model_bytes,
        })
    taken = interleaved({name: run.step for name, run in runs.items()}, rounds, turn)
    for row in rows:
        row["seconds"] = cheapest(taken[row["arm"]])
        row["median"] = statistics.median(busy for _, busy in taken[row["arm"]])
    for row in rows:
        row["times"] = {
            other["group"]: row["seconds"] / other["seconds"]
            for other in rows if other["group"] in REFERENCES
        }
        row["sizes"] = {
            other["group"]: row["memory"] / other["memory"]
            for other in rows if other["group"] in REFERENCES
        }
    return rows


REFERENCES = ("full", "lora", "pissa", "shira")


def step_job(name: str, quick: bool, rounds: int) -> list[Row]:
    job = (QUICK if quick else JOBS)[name]()
    return steps_on(job, [*references(), *parts(), *systems(job)], rounds)


def step(quick: bool) -> list[Row]:
    rows: list[Row] = []
    for name in QUICK if quick else JOBS:
        rows += in_fresh_process(step_job, name, quick, 2 if quick else 5)
        show_steps([row for row in rows if row["job"] == name])
    show_aims(rows)
    return rows


def show_steps(rows: Sequence[Row]) -> None:
    print_table(
        f"step: {rows[0]['job']}, processor time of a training step, and its tensors' peak memory",
        ("method", "trained", "step", "x full", "x LoRA", "x SHiRA", "memory", "x full", "x LoRA",
         "x SHiRA", "optimiser", "kept beside"),
        [(r["arm"], f"{r['trained']:,}", seconds(r["seconds"]),
          *(times(r["times"].get(g)) for g in ("full", "lora", "shira")), size(r["memory"]),
          *(times(r["sizes"].get(g)) for g in ("full", "lora", "shira")), size(r["optimizer"]),
          size(r["kept"])) for r in rows],
    )
    spread = statistics.median(r["median"] / r["seconds"] for r in rows)
    print(f"  (the least time of a call; the median call took {spread:.2f} times as long)")


def show_aims(rows: Sequence[Row]) -> None:
    lines = []
    for row in rows:
        for group, time, memory in AIMS.get(row["group"], ()):
            if group not in row["times"]:
                continue
            took, held = row["times"][group], row["sizes"][group]
            met = took <= time and (memory is None or held <= memory)
            lines.append((row["job"], row["arm"], group, times(took), f"<= {time:g}", times(held),
                          "" if memory is None else f"<= {memory:g}", "yes" if met else "no"))
    print_table(
        "step: aims",
        ("model", "method", "against", "time", "aim", "memory", "aim", "met"), lines,
    )


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e7 else f"{count / 1e6:.0f} MB"


# ---- start -----------------------------------------------------------------------------------

Timed = tuple[Callable[[], Any], Callable[[Any], Any]]  # what is prepared, untimed; what is timed


def layers(small: int, large: int) -> tuple[nn.Module, list[Tensor]]:
    """A feed-forward pair of random weights (flat spectra: the hard case), and inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(small, large), nn.GELU(), nn.Linear(large, small))
    return model, [torch.randn(1, 1024, small) for _ in range(4)]  # peft takes one sample at a time


def start_works(model: nn.Module, batches: Sequence[Any], rank: int) -> dict[str, Timed]:
    """Ours and peft's; each gets a fresh copy of the model."""

    def fresh() -> nn.Module:
        return copy.deepcopy(model)

    def run(copied: nn.Module) -> None:
        with torch.no_grad():
            for batch in batches:
                copied(**batch) if isinstance(batch, dict) else copied(batch)

    def ours(method: Any) -> Timed:
        calls = [b if isinstance(b, dict) else {"input": b} for b in batches]
        return fresh, lambda copied: method.attach(copied, {"knowledge": calls, "task": calls})

    def pissa(copied: nn.Module) -> Any:
        return inject(copied, PeftAdapter("pissa", rank).config(copied))

    def corda(copied: nn.Module) -> Any:
        from peft import LoraConfig
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda

        names = list(PeftAdapter("lora", rank).config(copied).target_modules)
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=names, init_lora_weights="corda",
            corda_config=CordaConfig(corda_method="kpm"),
        )
        preprocess_corda(copied, config, run_model=lambda: run(copied))
        return inject(copied, config)

    return {
        "peft PiSSA": (fresh, pissa), "SORSA": ours(SORSA(rank=rank)),
        "BA-LoRA": ours(BALoRA(rank=rank)), "peft CorDA": (fresh, corda),
        "CorDA": ours(CorDA(rank=rank)),
    }


STARTS = {"SORSA": "peft PiSSA", "BA-LoRA": "peft PiSSA", "CorDA": "peft CorDA"}


def start_of(name: str, quick: bool, rank: int = RANK) -> list[Row]:
    if name == "MiniLM":
        made, model = torch.Generator().manual_seed(0), minilm()
        ids = [torch.randint(1000, 30_000, (1, 256), generator=made) for _ in range(8)]
        model.encoder.layer = model.encoder.layer[: 2 if quick else 6]
        model.pooler = None  # it sees one vector a sample, which peft's CorDA can't count
        works = start_works(model, [{"input_ids": i} for i in ids], rank)
    else:
        works = start_works(*layers(*map(int, name.split(" x "))), rank)
    return compare(name, works, STARTS, rounds=1 if quick else 2)


def compare(
    name: str, works: Mapping[str, Timed], against: Mapping[str, str], rounds: int
) -> list[Row]:
    """Rows of the works in `against`, each with the one it is compared with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = interleaved(
            {n: work for n, (_, work) in works.items()}, rounds, prepare={
                n: before for n, (before, _) in works.items()
            },
        )
    least = {n: cheapest(calls) for n, calls in taken.items()}
    return [
        {"case": name, "ours": n, "theirs": other, "seconds": least[n], "other": least[other],
         "ratio": least[other] / least[n]} for n, other in against.items()
    ]


def start(quick: bool) -> list[Row]:
    rows: list[Row] = []
    for name in ("256 x 1024", "MiniLM") if quick else ("768 x 3072", "MiniLM"):
        rows += in_fresh_process(start_of, name, quick)
    show_pairs("start: until training can begin (aim: 5 times faster)", rows)
    return rows


def show_pairs(title: str, rows: Sequence[Row]) -> None:
    print_table(
        title, ("", "work", "seconds", "against", "seconds", "times"),
        [(r["case"], r["ours"], seconds(r["seconds"]), r["theirs"], seconds(r["other"]),
          f"{r['ratio']:.1f}") for r in rows],
    )


# ---- choice ----------------------------------------------------------------------------------


def nothing() -> None:
    return None


def without(work: Callable[[], Any]) -> Timed:
    """A work that needs nothing prepared."""
    return nothing, lambda _: work()


def topk(numbers: int, share: float = 0.08) -> list[Row]:
    """LT-SFT's exact top-K over many tensors."""
    made = torch.Generator().manual_seed(0)
    side = 512
    names = [f"w{i}" for i in range(max(1, numbers // side**2))]
    before = {n: torch.randn(side, side, generator=made) for n in names}
    after = {n: w + 0.01 * torch.randn(side, side, generator=made) for n, w in before.items()}
    count = round(share * side**2 * len(names))

    def joined() -> int:
        moved = np.concatenate([
            np.abs((after[n] - before[n]).numpy()).ravel() for n in names
        ])
        limit = np.partition(moved, len(moved) - count)[len(moved) - count]
        return sum(len(np.flatnonzero(np.abs((after[n] - before[n]).numpy()) >= limit))
                   for n in names)

    chosen = sum(map(len, largest(Moved(before, after), count).values()))
    if joined() != chosen != count:
        raise SystemExit(f"top-K: {chosen} entries are chosen, not {count}")
    works = {
        "exact top-K": without(lambda: largest(Moved(before, after), count)),
        "NumPy partition of all": without(joined),
    }
    case = f"LT-SFT, {side**2 * len(names) / 1e6:.0f} M values, {share:.0%}"
    return compare(case, works, dict([tuple(works)]), rounds=3)


def quantile(numbers: int, share: float = 0.1) -> list[Row]:
    """SaRA's threshold for a share of all entries, and the entries."""
    torch.manual_seed(0)
    side = 512
    model = nn.ModuleList(
        nn.Linear(side, side, bias=False) for _ in range(max(1, numbers // side**2))
    )

    def joined() -> list[np.ndarray]:
        weights = [p.detach().abs().numpy().ravel() for p in model.parameters()]
        everything = np.concatenate(weights)
        rank = round(share * len(everything))
        limit = np.partition(everything, rank)[rank]
        return [np.flatnonzero(w < limit) for w in weights]

    chosen = select(model, fraction=share).count
    if abs(sum(map(len, joined())) / chosen - 1) > 1e-3:
        raise SystemExit(f"quantile: {chosen} entries are chosen, NumPy chooses others")
    works = {
        "threshold and entries": without(lambda: select(model, fraction=share)),
        "NumPy partition of all": without(joined),
    }
    case = f"SaRA, {side**2 * len(model) / 1e6:.0f} M values, {share:.0%}"
    return compare(case, works, dict([tuple(works)]), rounds=3)


def intruders(m: int, n: int, rank: int = RANK) -> list[Row]:
    """One tuned matrix: detection, and the repaired edit, against peft's three decompositions."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(n, m, bias=False))
    base = model[0].weight.detach().clone()
    A, B = torch.randn(rank, n) / n**0.5, torch.randn(m, rank)
    edit = Edit({"0.weight": LowRank(B, A)})

    def three() -> int:
        U0 = torch.linalg.svd(base, full_matrices=False)[0]
        merged = base + B @ A
        U1, s, V1 = torch.linalg.svd(merged, full_matrices=False)
        cosines = (U1.T @ U0).abs().amax(1)[:10]
        top = [j for j in range(10) if cosines[j] < 0.5]
        torch.linalg.svd(merged - U1[:, top] * s[top] @ V1[top] - base, full_matrices=False)
        return len(top)

    def prepared() -> Any:
        wrapped = get_peft_model(
            copy.deepcopy(model), LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
        )
        layer = wrapped.base_model.model[0]
        layer.lora_A["default"].weight.data.copy_(A)
        layer.lora_B["default"].weight.data.copy_(B)
        return wrapped

    def peft(wrapped: Any) -> Any:
        return reduce_intruder_dimension(wrapped, logging_sink=None)

    found = detect(base, LinearMap.updated(base, B, A)).count
    if found != three():
        raise SystemExit(f"intruders: {found} are found, three decompositions give {three()}")
    works: dict[str, Timed] = {
        "detection": without(lambda: detect(base, LinearMap.updated(base, B, A))),
        "three decompositions": without(three),
        "repair": without(lambda: Repair({"0.weight": base}, edit).edit(0.25)),
        "peft reduce_intruder_dimension": (prepared, peft),
    }
    against = {
        "detection": "three decompositions", "repair": "peft reduce_intruder_dimension",
    }
    return compare(f"intruders, {m} x {n}", works, against, rounds=3)


def edits(side: int, rank: int = 32) -> list[Row]:
    """Applying and reverting edits of one size, against adding and subtracting B A."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(side, side, bias=False))
    weight, shape = model[0].weight.detach().clone(), (side, side)
    A, B = torch.randn(rank, side), 0.01 * torch.randn(side, rank)
    at = torch.randperm(side * side)[: 2 * rank * side].sort().values
    units = torch.randperm(side)[: 2 * rank].sort().values
    base = fingerprint(model)
    changes = {
        "block": Block(1, units, 0.01 * torch.randn(side, 2 * rank), shape),
        "block of rows": Block(0, units, 0.01 * torch.randn(2 * rank, side), shape),
        "sparse": Sparse(at, 0.01 * torch.randn(len(at)), shape),
        "low rank": LowRank(B, A),
    }

    def there_and_back(edit: Edit, check: bool) -> Callable[[], None]:
        return lambda: edit.apply(model, check=check).revert()

    @torch.no_grad()
    def naive() -> None:
        weight.add_(B @ A)
        weight.sub_(B @ A)

    works = {"W + B A, W - B A": without(naive)}
    for name, change in changes.items():
        edit = Edit({"0.weight": change}, base)
        works[name] = without(there_and_back(edit, False))
        if name == "sparse":
            works["sparse, base checked"] = without(there_and_back(edit, True))
    ours = [name for name in works if not name.startswith("W + ")]
    rows = compare(
        f"apply and revert, {side} x {side}, {2 * rank * side:,} numbers", works,
        dict.fromkeys(ours, "W + B A, W - B A"), rounds=7,
    )
    if fingerprint(model).sha256 != base.sha256:
        raise SystemExit("edits: what was reverted is not what it was")
    return rows


def fingerprints(numbers: int) -> list[Row]:
    """Bytes a second, against SHA-256 of the same bytes."""
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(numbers // 512**2))
    raw = [p.detach().numpy().data.cast("B") for p in model.parameters()]

    def plain() -> str:
        state = hashlib.sha256()
        for one in raw:
            state.update(one)
        return state.hexdigest()

    works = {"fingerprint": without(lambda: fingerprint(model)), "SHA-256": without(plain)}
    count = sum(map(len, raw))
    rows = compare(f"fingerprint, {count / 1e6:.0f} MB", works, dict([tuple(works)]), rounds=3)
    rows[0]["ours"] = f"fingerprint ({count / rows[0]['seconds'] / 1e9:.2f} GB/s)"
    return rows


def choice(quick: bool) -> list[Row]:
    numbers = 2_000_000 if quick else 20_000_000
    works: list[tuple[Callable[..., list[Row]], tuple[int, ...]]] = [
        (topk, (numbers,)), (quantile, (numbers,)),
        (intruders, (256, 512) if quick else (768, 3072)), (edits, (512 if quick else 2048,)),
        (fingerprints, (numbers,)),
    ]
    rows = [row for work, given in works for row in in_fresh_process(work, *given)]
    show_pairs("choice: selecting, finding and applying", rows)
    return rows


# ---- the command -----------------------------------------------------------------------------

PARTS: dict[str, Callable[[bool], list[Row]]] = {"step": step, "start": start, "choice": choice}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--threads", type=int, default=1, help="of BLAS and torch (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args()
    fix_threads(options.threads, PRELOAD)
    facts = machine(options.threads, ("numpy", "torch", "transformers", "peft"))
    print_machine(facts)
    results: dict[str, Any] = {"machine": facts}
    for name, part in PARTS.items():
        if options.only in (None, name):
            results[name] = part(options.quick)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

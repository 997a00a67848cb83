"""What the paper of S2FT claims, on a byte-level Llama that knows docstrings and learns code.

S2FT trains 12,800 scalars, LoRA 19,520 (rank 2 on all layers), full fine-tuning 857,216. Learning
rates: lowest bits/byte on code of calibration seed 1000, for each method from 1e-3, 3e-3, 1e-2,
3e-2 and on to where they rise again. On lm-arithmetic S2FT and LoRA stay below 2 % of exact match
in 150 steps, which tells nothing apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, median
from typing import Any

from passband.bench.claims import Bench, Evidence, judge, not_shown
from passband.tuning.s2ft.fusion import left_in_the_sum

STEPS = "150 steps"
METHODS: dict[str, dict[str, Any]] = {
    "S2FT": {"system": "s2ft", "lr": 1e-1},
    "LoRA": {"system": "lora", "lr": 3e-2, "rank": 2},
    "full": {"system": "full-tuning", "lr": 3e-3},
}


# ---- P4: exactness -------------------------------------------------------------------------------


def exact(bench: Bench) -> Evidence:
    """The largest of: change by permuting, gap of loss curves, gap of gradients to dense ones."""
    worst, table = [], []
    for seed in bench.seeds(1 if bench.smoke else 3):
        gaps = {
            f"{name} {what}": gap
            for name in ("plain", "grouped queries", "biases")
            for what, gap in _gaps(name, seed)
        }
        worst.append(max(gaps.values()))
        table += [[seed, name, f"{gap:.1e}"] for name, gap in gaps.items()]
    return judge(
        worst, margin=1e-5, better="lower", unit="largest deviation",
        details={"columns": ["seed", "what", "deviation"], "rows": table},
    )


def _gaps(kind: str, seed: int) -> Iterator[tuple[str, float]]:
    import torch

    from passband.tuning.s2ft.coupling import find_structures
    from passband.tuning.s2ft.model import S2FT
    from passband.tuning.s2ft.permutation import Permuted, outputs, random_order

    model, batch = _small(kind, seed), _tokens(seed)
    structures = find_structures(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        before = outputs(model, batch)
        orders = {s.name: random_order(s, generator) for s in structures}
        moved = Permuted(model, structures, orders)
        yield "function", float((outputs(model, batch) - before).abs().max())
        moved.undo()
    curves = [_curve(_small(kind, seed), layout, seed) for layout in ("gather", "permute")]
    yield "loss curves", max(abs(a - b) for a, b in zip(*curves, strict=True))

    dense = _small(kind, seed)
    _loss(dense, batch).backward()
    gradients = {n: p.grad for n, p in dense.named_parameters()}
    handle = S2FT(o=0.25, d=0.1, v=0.25, u=0.1).attach(model, seed=seed)
    _loss(model, batch).backward()
    gaps = []
    for name, block in handle.blocks.items():
        whole, part = gradients[name], block.values.grad
        assert whole is not None and part is not None
        gaps.append(float((whole.index_select(block.dim, block.index) - part).abs().max()))
    yield "gradients", max(gaps)


def _small(kind: str, seed: int) -> Any:
    """Two blocks with random weights and biases."""
    import torch

    from passband.tuning.models import byte_lm
    from passband.tuning.models.library import quiet, seeded, transformers

    library = transformers()
    if kind == "biases":
        config = library.GPTNeoXConfig(
            vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, use_cache=False,
            hidden_dropout=0.0, attention_dropout=0.0,
        )
        with quiet(), seeded(seed):
            model = library.GPTNeoXForCausalLM(config)
    else:
        model = byte_lm(64, 172, 2, 4, 2 if kind == "grouped queries" else 4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _tokens(seed: int, size: int = 8, length: int = 24) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(0, 256, (size, length), generator=generator)}


def _loss(model: Any, batch: Mapping[str, Any]) -> Any:
    return model(**batch, labels=batch["input_ids"]).loss


def _curve(model: Any, layout: Any, seed: int, steps: int = 10) -> list[float]:
    from passband.tuning.s2ft.model import S2FT

    handle = S2FT(o=0.25, d=0.1, v=0.25, u=0.1, layout=layout).attach(model, seed=seed)
    optimizer = handle.optimizer(lr=1e-3)
    losses = []
    for step in range(steps):
        loss = _loss(model, _tokens(seed + step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# ---- P1: gain and forgetting ---------------------------------------------------------------------


def learns_as_well(bench: Bench) -> Evidence:
    """C1: bits/byte on held-out code over LoRA's."""
    rows = _rows(bench)
    ratios = [
        a["bits_per_byte"] / b["bits_per_byte"]
        for a, b in zip(rows["S2FT"], rows["LoRA"], strict=True)
    ]
    return judge(
        ratios, margin=1.03, better="lower", unit="x the bits/byte of LoRA", details=_table(rows),
    )


def forgets_less_than_full(bench: Bench) -> Evidence:
    """C2: forgetting as a share of that of full fine-tuning."""
    return _forgetting(bench, "full", margin=0.6)


def forgets_less_than_lora(bench: Bench) -> Evidence:
    """C5: forgetting as a share of that of LoRA."""
    return _forgetting(bench, "LoRA", margin=1.0)


def _forgetting(bench: Bench, rival: str, margin: float) -> Evidence:
    rows = _rows(bench)
    ratios = [
        a["forgetting"] / b["forgetting"]
        for a, b in zip(rows["S2FT"], rows[rival], strict=True)
    ]
    return judge(
        ratios, margin=margin, better="lower", unit=f"of the forgetting of {rival}",
        details=_table(rows),
    )


def _rows(bench: Bench) -> dict[str, list[Mapping[str, float]]]:
    seeds = bench.seeds(1 if bench.smoke else 5)
    common = {"task": "lm-code", "budget": STEPS}
    if bench.smoke:
        common |= {"size": "smoke", "preset": "smoke", "budget": "20 steps"}
    cells = [
        {**common, **({"system": how["system"]} if bench.smoke else how), "seed": seed}
        for how in METHODS.values() for seed in seeds
    ]
    rows = iter(bench.run_many(cells))
    return {name: [next(rows)["metrics"] for _ in seeds] for name in METHODS}


def _table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    names = ("bits_per_byte", "forgetting", "out_of_domain", "trainable", "step_bytes")
    return {
        "columns": ["method", *names],
        "rows": [
            [method, *(f"{fmean(r[n] for r in of):.4g}" for n in names)]
            for method, of in rows.items()
        ],
    }


# ---- P2: cost ------------------------------------------------------------------------------------


def step_against_full(bench: Bench) -> Evidence:
    """C3: median step time over that of full fine-tuning."""
    return _step(bench, "full", margin=0.8)


def step_against_lora(bench: Bench) -> Evidence:
    """C3-lora: median step time over that of LoRA."""
    return _step(bench, "LoRA", margin=1.0)


def _step(bench: Bench, rival: str, margin: float) -> Evidence:
    methods = ("S2FT", rival) if bench.smoke else ("S2FT", "LoRA", "full")
    ratios, seen = [], []
    for seed in bench.seeds(1 if bench.smoke else 3):
        times = _race(methods, seed, smoke=bench.smoke)
        ratios.append(times["S2FT"] / times[rival])
        seen.append([seed, *(f"{1e3 * times[m]:.0f}" for m in methods)])
    return judge(
        ratios, margin=margin, better="lower", log=True, unit=f"x the step time of {rival}",
        details={"columns": ["seed", *(f"ms {m}" for m in methods)], "rows": seen},
    )


def _race(methods: Sequence[str], seed: int, smoke: bool) -> dict[str, float]:
    """Median seconds of a step of each, steps taken in turns."""
    runners: dict[str, Callable[[], None]] = {}
    batch = _tokens(seed, 2, 32 if smoke else 256)
    for name in methods:
        model = _wide(seed, smoke).train()
        optimizer = _prepared(name, model, seed, smoke)
        runners[name] = _stepper(model, optimizer, batch)
    return _in_turns(runners, turns=4 if smoke else 14)


def _in_turns(runs: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median seconds of each, taken in turns on one thread after two turns of warming up.

    Seconds of this process alone: what it takes on a machine that does nothing else.
    """
    import torch

    times: dict[str, list[float]] = {name: [] for name in runs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(turns):
            for name, run in runs.items():
                began = time.process_time()
                run()
                times[name] += [time.process_time() - began] if turn >= 2 else []
    finally:
        torch.set_num_threads(threads)
    return {name: median(of) for name, of in times.items()}


def _stepper(model: Any, optimizer: Any, batch: Mapping[str, Any]) -> Callable[[], None]:
    def run() -> None:
        optimizer.zero_grad()
        _loss(model, batch).backward()
        optimizer.step()

    return run


def _wide(seed: int, smoke: bool) -> Any:
    from passband.tuning.models import byte_lm

    return byte_lm(64, 172, 2, 4, seed=seed) if smoke else byte_lm(512, 1376, 4, 8, seed=seed)


def _prepared(name: str, model: Any, seed: int, smoke: bool) -> Any:
    """The optimiser of a method on a model: 206,336 trained scalars, with LoRA 219,136."""
    import torch

    if name == "S2FT":
        from passband.tuning.s2ft.model import S2FT

        method = S2FT(o=0.125 if smoke else 0.0625, d=0.05)
        return method.attach(model, seed=seed).optimizer(lr=1e-4)
    if name == "LoRA":
        import peft

        config = peft.LoraConfig(
            r=8, lora_alpha=16,
            target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        )
        adapted = peft.get_peft_model(model, config)
        trained = [p for p in adapted.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-4, foreach=True)
    return torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)


def saved_inputs(bench: Bench) -> Evidence:
    """C3-memory: bytes of down matrices' inputs that are not saved, over all of their bytes.

    Counted by autograd's own hooks, weights left out; against training all of the down matrices.
    The margin is the frozen share, 1 - d = 0.95, less one unit of rounding.
    """
    from passband.tuning.s2ft.model import S2FT

    shares, table = [], []
    length = 32 if bench.smoke else 256
    for seed in bench.seeds(1 if bench.smoke else 3):
        batch = _tokens(seed, 2, length)
        dense, sparse = _wide(seed, bench.smoke), _wide(seed, bench.smoke)
        dense.requires_grad_(False)
        downs = [m for n, m in dense.named_modules() if n.endswith("down_proj")]
        for module in downs:
            module.weight.requires_grad_(True)
        S2FT(o=0.0, d=0.05).attach(sparse, seed=seed)
        found = [_saved(model, batch) for model in (dense, sparse)]
        inputs = sum(4 * batch["input_ids"].numel() * m.in_features for m in downs)
        shares.append((found[0] - found[1]) / inputs)
        table.append([seed, *(f"{b / 1e6:.2f}" for b in (*found, inputs))])
    return judge(
        shares, margin=0.94, better="higher", unit="of the inputs of down matrices not kept",
        details={
            "columns": ["seed", "MB saved, all of down", "MB saved, S2FT", "MB of the inputs"],
            "rows": table,
        },
    )


def _saved(model: Any, batch: Mapping[str, Any]) -> int:
    """Bytes that a forward pass saves for the backward pass, each storage once, weights apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with _saving() as storages:
        loss = _loss(model, batch)
    kept = sum(size for address, size in storages.items() if address not in own)
    del loss
    return kept


@contextmanager
def _saving() -> Iterator[dict[int, int]]:
    import torch

    storages: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


# ---- P3: adapters --------------------------------------------------------------------------------


def switching(bench: Bench) -> Evidence:
    """C4-switch: time of W += B A over that of index_add, taken in turns."""
    import torch

    from passband.parts.edits import Block
    from passband.tuning.s2ft.serving import add_block

    size, k, r = (512, 16, 8) if bench.smoke else (2048, 64, 32)
    ratios, table = [], []
    for seed in bench.seeds(1 if bench.smoke else 3):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(size, size, generator=generator)
        index = torch.randperm(size, generator=generator)[:k].sort().values
        change = Block(1, index, torch.randn(size, k, generator=generator), (size, size))
        b, a = (torch.randn(s, generator=generator) for s in ((size, r), (r, size)))
        runs: dict[str, Callable[[], Any]] = {
            "index_add": lambda w=weight, c=change: add_block(w, c),
            "B A": lambda w=weight, b=b, a=a: w.addmm_(b, a),
        }
        found = _in_turns(runs, turns=32)
        ratios.append(found["B A"] / found["index_add"])
        table.append([seed, *(f"{1e3 * t:.2f}" for t in found.values())])
    return judge(
        ratios, margin=3.0, better="higher", log=True, unit="x as fast as adding B A",
        details={"columns": ["seed", "ms index_add", "ms B A"], "rows": table},
    )


def fusion(bench: Bench) -> Evidence:
    """C4: share of the gains that is left in the sum of two adapters, minus that of LoRA."""
    gaps, table = [], []
    for seed in bench.seeds(1 if bench.smoke else 3):
        left = {name: left_in_the_sum(name, seed, bench.smoke) for name in ("S2FT", "LoRA")}
        means = {name: fmean(of.values()) for name, of in left.items()}
        gaps.append(means["S2FT"] - means["LoRA"])
        table.append([seed, *(f"{v:.3f}" for of in left.values() for v in of.values())])
    return judge(
        gaps, margin=0.0, better="higher", unit="more of the gains is left than with LoRA",
        details={
            "columns": ["seed", "S2FT code", "S2FT JSON", "LoRA code", "LoRA JSON"],
            "rows": table,
        },
    )


CLAIMS = {
    "exact": exact,
    "C1": learns_as_well,
    "C1-full": lambda _: not_shown("LLaMA-3-8B, math_10k and commonsense_170k: 4 GPUs for hours"),
    "C2": forgets_less_than_full,
    "C3": step_against_full,
    "C3-lora": step_against_lora,
    "C3-memory": saved_inputs,
    "C4": fusion,
    "C4-switch": switching,
    "C4-parallel": lambda _: not_shown("a GPU and an LLM in service, with LoRA's own kernels"),
    "C5": forgets_less_than_lora,
}

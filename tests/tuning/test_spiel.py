"""SpIEL against an independent dense simulation, hand computation and brute force."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, train
from passband.bench.streams import Streams
from passband.errors import (
    ConfigError,
    DataError,
    PassbandWarning,
    UnknownNameError,
)
from passband.parts.edits import Edit
from passband.parts.nf4 import pack, unpack
from passband.parts.slots import SM3, SlotAdamW
from passband.tuning.spiel.candidates import Candidates
from passband.tuning.spiel.growth import budgets
from passband.tuning.spiel.model import SpIEL
from passband.tuning.switch import Adapters
from tests.tuning.test_spiel_growth import brute_exchange


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6))


def batch(step: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(size, 12, generator=generator), torch.randn(size, 6, generator=generator)


def loss(model: nn.Module, step: int, size: int = 8) -> torch.Tensor:
    x, y = batch(step, size)
    return (model(x) - y).square().mean()


def run(handle, optimizer, steps, first=0, objective=loss):
    for step in range(first, steps):
        handle.objective(objective(handle.model, step)).backward()
        optimizer.step()
        optimizer.zero_grad()


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def method(**changes) -> SpIEL:
    options = {"density": 0.1, "reselection_steps": 6, "accumulation_steps": 3}
    return SpIEL(**(options | changes))


# ---- budgets and positions -----------------------------------------------------------------------


def test_budgets_are_floors_of_shares():
    sizes = {"a": 7, "b": 100, "c": 13}
    found = budgets(sizes, 60)
    assert found == {n: math.floor(60 * s / 120) for n, s in sizes.items()}


def test_density_counts_all_parameters_and_rank_those_of_lora():
    model = network()
    everything = 12 * 20 + 20 + 20 * 6 + 6
    counts = SpIEL(density=0.1).counts(model)
    total = int(0.1 * everything)
    assert counts == {"0.weight": total * 240 // 360, "2.weight": total * 120 // 360}
    matched = SpIEL(match_rank=2).counts(model)
    assert sum(matched.values()) in range(2 * (32 + 26) - 1, 2 * (32 + 26) + 1)


def test_budgets_that_do_not_fit_name_the_layer():
    with pytest.raises(ConfigError, match="gives 361"):
        budgets({"big": 300, "small": 3}, 365)
    with pytest.raises(ConfigError, match=r"none for small"):
        budgets({"big": 300, "small": 3}, 50)
    assert budgets({"big": 300, "small": 3}, 101)["small"] == 1
    with pytest.raises(ConfigError, match="density"):
        SpIEL(density=1.5).attach(network(), steps=20)
    with pytest.raises(ConfigError):
        SpIEL(density=None).attach(network(), steps=20)
    with pytest.raises(ConfigError, match="budget and match_rank"):
        SpIEL(budget=3, match_rank=2).attach(network(), steps=20)
    with pytest.raises(ConfigError, match="accumulation_steps"):
        method(accumulation_steps=6).attach(network(), steps=20)
    with pytest.raises(DataError):
        method(targets=("q_proj",)).attach(network(), steps=20)


# ---- whole runs against a dense simulation -------------------------------------------------------


def simulate_ag(model, indices, steps, lr, wd, S, gamma, p0, policy, timing=False, criterion="m"):
    """AG on dense tensors: a mask, the method's formulas, no slots. Returns deltas and masks."""
    weights = {n: p for n, p in model.named_parameters() if n in indices}
    base = {n: p.detach().clone() for n, p in weights.items()}
    state = {}
    for n, p in weights.items():
        mask = torch.zeros(p.numel(), dtype=torch.bool)
        mask[indices[n]] = True
        keys = ("m", "v", "phi", "old")
        state[n] = {k: torch.zeros(p.numel(), dtype=torch.float64) for k in keys}
        state[n] |= {"mask": mask, "age": torch.zeros(p.numel(), dtype=torch.int64), "cand": None}
    trajectory = []
    for t in range(steps):
        gradients = torch.autograd.grad(loss(model, t), list(weights.values()))
        looks = t % S < gamma or (timing and (t + 1) % S == 0)
        for (n, p), dense in zip(weights.items(), gradients, strict=True):
            s, g = state[n], dense.flatten().double()
            k = int(s["mask"].sum())
            if looks:
                if s["cand"] is None:
                    top = torch.sort(g.abs(), descending=True).indices[:k]
                    s["cand"] = {int(i): [0.0, 0.0, 0] for i in top}
                for i, one in s["cand"].items():
                    one[0] += float(g[i])
                    one[1] += float(g[i]) ** 2
                    one[2] += 1
            a = s["mask"]
            s["age"][a] += 1
            s["m"][a] = 0.9 * s["m"][a] + 0.1 * g[a]
            s["v"][a] = 0.999 * s["v"][a] + 0.001 * g[a] ** 2
            age = s["age"][a].double()
            denominator = (s["v"][a].sqrt() + 1e-6) * (1 - 0.9**age) / (1 - 0.999**age).sqrt()
            s["phi"][a] -= lr * s["m"][a] / denominator
            s["phi"][a] -= lr * wd * s["phi"][a]
            done = t + 1
            if done % S == gamma and done < steps:
                left = 1 - done / steps
                p_now = p0 * left if policy == "linear" else (
                    p0 * (1 + math.cos(math.pi * done / steps)) / 2
                )
                if policy == "linear" and done == gamma:
                    p_now = 1.0
                active = a.nonzero().flatten().tolist()
                size = (s["phi"] - (s["old"] if criterion == "c" else 0)).abs()
                # Ages, moments and values of what stays are not touched.
                keys = list(s["cand"])
                gone, come = brute_exchange(
                    active, size[active].tolist(), keys, [abs(s["cand"][i][0]) for i in keys],
                    int(k * p_now),
                )
                for i in gone:
                    s["mask"][i] = False
                    for key in ("m", "v", "phi", "age"):
                        s[key][i] = 0
                for i in come:
                    total, squares, count = s["cand"][i]
                    s["mask"][i] = True
                    s["m"][i] = total / count * (1 - 0.9**count)
                    s["v"][i] = squares / count * (1 - 0.999**count)
                    s["age"][i] = count
                s["cand"] = None
                s["old"] = s["phi"].clone()
            with torch.no_grad():
                p.copy_(base[n] + s["phi"].float().view_as(p))
        trajectory.append({n: s["mask"].clone() for n, s in state.items()})
    return {n: s["phi"] for n, s in state.items()}, trajectory


AG = [
    {}, {"policy": "cosine"}, {"reference_timing": True}, {"drop_criterion": "change"},
]


@pytest.mark.parametrize("changes", AG, ids=str)
def test_ag_is_that_of_a_dense_simulation(changes):
    steps = 21
    ours, dense = network(), network()
    handle = method(**changes).attach(ours, steps=steps, seed=4)
    start = {n: at.clone() for n, at in handle.selected.indices.items()}
    optimizer = handle.optimizer(lr=1e-2, weight_decay=1.0)
    seen = []
    for step in range(steps):
        handle.objective(loss(ours, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append({n: set(at.tolist()) for n, at in handle.selected.indices.items()})
    phi, masks = simulate_ag(
        dense, start, steps, 1e-2, 1.0, 6, 3, 0.2, changes.get("policy", "linear"),
        changes.get("reference_timing", False), changes.get("drop_criterion", "m")[0],
    )
    for mine, mask in zip(seen, masks, strict=True):
        for name in start:
            assert mine[name] == set(mask[name].nonzero().flatten().tolist())
    for name, change in handle.edit().changes.items():
        torch.testing.assert_close(
            change.delta().flatten().double(), phi[name], rtol=1e-4, atol=1e-6
        )
    assert [one.step for one in handle.rounds] == [3, 9, 15]
    assert any(one.moved for one in handle.rounds[1:])


def test_ma_is_that_of_a_dense_simulation():
    steps, lr, wd = 22, 3e-2, 0.5
    ours, dense = network(), network()
    handle = method(algorithm="ma").attach(ours, steps=steps, seed=4)
    start = {n: at.clone() for n, at in handle.selected.indices.items()}
    optimizer = handle.optimizer(lr=lr, weight_decay=wd)
    assert isinstance(optimizer, SM3)
    run(handle, optimizer, steps)

    weights = {n: p for n, p in dense.named_parameters() if n in start}
    base = {n: p.detach().clone() for n, p in weights.items()}
    state = {}
    for n, p in weights.items():
        mask = torch.zeros_like(p, dtype=torch.bool)
        mask.view(-1)[start[n]] = True
        state[n] = [mask, torch.zeros_like(p), torch.zeros(p.shape[0]), torch.zeros(p.shape[1])]
    for t in range(steps):
        gradients = torch.autograd.grad(loss(dense, t), list(weights.values()))
        for (n, p), g in zip(weights.items(), gradients, strict=True):
            mask, phi, r, c = state[n]
            nu = torch.minimum(r[:, None], c[None, :]) + g**2
            inside = torch.where(mask, nu, torch.zeros_like(nu))
            r, c = torch.maximum(r, inside.amax(1)), torch.maximum(c, inside.amax(0))
            phi = torch.where(mask, phi - lr * g / (nu + 1e-8).sqrt(), phi)
            phi = phi * (1 - lr * wd)
            if (t + 1) % 6 == 3 and t + 1 < steps:
                k = int(mask.sum())
                count = k if t + 1 == 3 else int(k * 0.2 * (1 - (t + 1) / steps))
                outer = torch.outer(r.double(), c.double())
                outer[mask] = -1
                free = int((outer > 0).sum())
                count = min(count, free)
                grown = outer.flatten().sort(descending=True, stable=True).indices[:count]
                active = mask.flatten().nonzero().flatten()
                drop = active[phi.flatten()[active].abs().sort(stable=True).indices[:count]]
                mask, phi = mask.clone().flatten(), phi.clone().flatten()
                mask[drop], phi[drop] = False, 0.0
                mask[grown] = True
                mask, phi = mask.view_as(p), phi.view_as(p)
            state[n] = [mask, phi, r, c]
            with torch.no_grad():
                p.copy_(base[n] + phi)
    for name, change in handle.edit().changes.items():
        mask, phi, *_ = state[name]
        assert set(change.indices.tolist()) == set(mask.flatten().nonzero().flatten().tolist())
        torch.testing.assert_close(change.delta(), phi, rtol=1e-4, atol=1e-6)
    assert [one.step for one in handle.rounds] == [3, 9, 15, 21]


# ---- seeds ---------------------------------------------------------------------------------------


def test_a_seeded_slot_steps_as_if_it_had_seen_its_gradients():
    """Two steps of equal gradients, then one more: the moments of Adam, by hand."""
    g, after = 0.25, -0.125
    found = Candidates.choose(torch.tensor([0.0, g]), 1)
    assert found is not None
    for _ in range(2):
        found.add(torch.tensor([0.0, g]), torch.tensor([0]), anew=True)
        found.settle(torch.zeros(1))
        found.fold()
    m, v = found.moments(torch.tensor([0]), 0.9, 0.999)
    # Two steps of Adam from zero: m = 0.9 (0.1 g) + 0.1 g, v likewise.
    assert float(m) == pytest.approx(0.9 * 0.1 * g + 0.1 * g)
    assert float(v) == pytest.approx(0.999 * 0.001 * g**2 + 0.001 * g**2)
    values = nn.Parameter(torch.zeros(1))
    optimizer = SlotAdamW([values], lr=1.0, weight_decay=0.0, eps_placement="before", eps=1e-6)
    optimizer.seed(values, torch.tensor([0]), m, v, found.steps)
    values.grad = torch.tensor([after])
    optimizer.step()
    first = 0.9 * float(m) + 0.1 * after
    second = 0.999 * float(v) + 0.001 * after**2
    corrected = first / (1 - 0.9**3) / ((math.sqrt(second) + 1e-6) / math.sqrt(1 - 0.999**3))
    assert float(values.detach()) == pytest.approx(-corrected, rel=1e-5)


def moments(handle, optimizer):
    """Moments and ages by position."""
    found = {}
    for name, values in handle.selected.values.items():
        state = optimizer.state[values]
        for i, at in enumerate(handle.selected.indices[name].tolist()):
            found[name, at] = tuple(float(state[key][i]) for key in optimizer.per_slot)
    return found


def test_micro_batches_seed_like_one_batch():
    """The candidates are those of the first micro-batch; what they hold is that of the step."""
    def attach():
        handle = method(density=0.5).attach(network(), steps=20, seed=1)
        return handle, handle.optimizer(lr=1e-3)

    whole, one = attach()
    parts, other = attach()
    for step in range(3):
        x, y = batch(step)
        (whole.model(x) - y).square().mean().backward()
        for i in range(4):
            part = slice(2 * i, 2 * i + 2)
            ((parts.model(x[part]) - y[part]).square().mean() / 4).backward()
        for optimizer in (one, other):
            optimizer.step()
            optimizer.zero_grad()
    assert [r.step for r in whole.rounds] == [r.step for r in parts.rounds] == [3]
    a, b = moments(whole, one), moments(parts, other)
    common = a.keys() & b.keys()
    assert len(common) > 30
    for key in common:
        assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-9)
    assert {age for age, *_ in a.values()} == {age for age, *_ in b.values()} == {3}


def test_seeds_are_in_the_units_of_the_optimiser():
    """Clipping and unscaling multiply what the optimiser sees: the seeds follow."""
    def seeded(factor):
        handle = method(density=0.5).attach(network(), steps=20, seed=1)
        optimizer = handle.optimizer(lr=0.0)
        for step in range(3):
            loss(handle.model, step).backward()
            for values in handle.parameters():
                values.grad *= factor
            optimizer.step()
            optimizer.zero_grad()
        return moments(handle, optimizer)

    plain, halved = seeded(1.0), seeded(0.5)
    assert plain.keys() == halved.keys()
    for key, (age, m, v) in plain.items():
        assert halved[key] == pytest.approx((age, m / 2, v / 4), rel=1e-5, abs=1e-12)


def test_other_optimisers_start_newborn_slots_without_moments():
    handle = method().attach(network(), steps=20)
    optimizer = handle.bind(torch.optim.AdamW(handle.parameters(), lr=1e-3, weight_decay=0.0))
    run(handle, optimizer, 3)
    assert handle.rounds[0].moved
    for name, values in handle.selected.values.items():
        stayed = values.detach() != 0
        moments = optimizer.state[values]["exp_avg"]
        assert torch.equal(moments != 0, stayed), name
    with pytest.raises(ConfigError, match="SM3"):
        other = method(algorithm="ma").attach(network(1), steps=20)
        other.bind(torch.optim.SGD(other.parameters(), lr=1.0))


# ---- length, overflow, resume --------------------------------------------------------------------


def test_the_length_of_the_run_has_to_be_known():
    handle = method().attach(network())
    with pytest.raises(ConfigError, match="length of the run"):
        run(handle, handle.optimizer(lr=1e-3), 1)
    streaming = method(horizon=30, policy="cosine").attach(network(1))
    run(streaming, streaming.optimizer(lr=1e-3), 10)
    shares = [one.share for one in streaming.rounds]
    assert shares == pytest.approx([0.1 * (1 + math.cos(math.pi * t / 30)) for t in (3, 9)])
    fixed = method(growth="none").attach(network(2))
    at = {n: i.clone() for n, i in fixed.selected.indices.items()}
    run(fixed, fixed.optimizer(lr=1e-3), 12)
    assert all(torch.equal(i, at[n]) for n, i in fixed.selected.indices.items())


def test_a_run_without_any_reselection_warns():
    with pytest.warns(PassbandWarning, match="random positions"):
        method().attach(network(), steps=3)


def test_the_last_step_moves_nothing():
    handle = method().attach(network(), steps=9)
    run(handle, handle.optimizer(lr=1e-2), 9)
    assert [one.step for one in handle.rounds] == [3]


def test_gradients_that_are_not_finite_are_skipped():
    clean, broken = (method().attach(network(), steps=20, seed=2) for _ in range(2))
    one, other = clean.optimizer(lr=1e-2), broken.optimizer(lr=1e-2)
    run(clean, one, 1)
    run(broken, other, 1)
    stood = {n: v.detach().clone() for n, v in broken.trained().items()}
    (loss(broken.model, 7) * float("inf")).backward()
    with pytest.warns(PassbandWarning, match="step 2 are not finite"):
        other.step()
    other.zero_grad()
    for name, values in broken.trained().items():
        assert torch.equal(values, stood[name])
    assert {found.steps for found in broken.candidates.values()} == {1}
    run(broken, other, 3, first=2)
    assert broken.rounds[0].step == 3
    ages = {age for age, *_ in moments(broken, other).values()}
    assert ages == {2}  # steps 1 and 3


def test_an_overflow_at_the_first_step_delays_the_candidates():
    handle = method().attach(network(), steps=20)
    optimizer = handle.optimizer(lr=1e-2)
    (loss(handle.model, 0) * float("inf")).backward()
    optimizer.zero_grad()  # as a loss scaler leaves it: no step of the optimiser
    assert handle.candidates == {}
    run(handle, optimizer, 3)
    assert handle.rounds[0].moved


@pytest.mark.parametrize("algorithm", ["ag", "ma"])
def test_a_killed_run_ends_like_a_whole_one(algorithm, tmp_path):
    """Killed inside a selection phase, and after a reselection."""
    data = [(x, y) for step in range(8) for x, y in zip(*batch(step), strict=True)]

    def go(folder, resume, stop=None):
        handle = method(algorithm=algorithm, drop_criterion="change").attach(
            network(), steps=24, seed=3
        )
        optimizer = handle.optimizer(lr=1e-2)

        def objective(module, pair):
            if handle.count == stop:
                raise RuntimeError("killed")
            return (handle.model(pair[0]) - pair[1]).square().mean()

        train(
            nn.ParameterList(handle.parameters()), objective, data, Budget(steps=24),
            LoopConfig(steps=24, batch_size=8, lr=1e-2, checkpoint_steps=1),
            streams=Streams(0), optimizer=optimizer, checkpoints=folder, resume=resume,
            state=handle,
        )
        return handle, optimizer

    whole, one = go(tmp_path / "whole", False)
    for stop in (2, 3, 11):
        with pytest.raises(RuntimeError, match="killed"):
            go(tmp_path / str(stop), False, stop)
        again, other = go(tmp_path / str(stop), True)
        assert again.rounds == whole.rounds and len(whole.rounds) == 4
        for name, values in whole.trained().items():
            assert torch.equal(whole.selected.indices[name], again.selected.indices[name])
            assert torch.equal(values, again.trained()[name])
            for key, tensor in one.state[values].items():
                assert torch.equal(tensor, other.state[again.trained()[name]][key]), key


# ---- layers, heads, memory -----------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ag", "ma"])
def test_conv1d_moves_like_linear(algorithm):
    """The same run on W and on W^T stored: positions are transposed, values equal."""
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    plain = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6))
    turned = nn.Sequential(
        pytorch_utils.Conv1D(20, 12), nn.Tanh(), pytorch_utils.Conv1D(6, 20)
    )
    with torch.no_grad():
        for i in (0, 2):
            turned[i].weight.copy_(plain[i].weight.T)
            turned[i].bias.copy_(plain[i].bias)
    rows = {"row_cover_only": algorithm == "ma"}
    handles = [method(algorithm=algorithm, **rows).attach(m, steps=16) for m in (plain, turned)]
    shapes = {"0.weight": (20, 12), "2.weight": (6, 20)}
    for name, (m, n) in shapes.items():
        at = handles[0].selected.indices[name]
        start = at % n * m + at // n
        slots = torch.arange(len(at))
        handles[1].selected.change_slots(name, slots, start)
    for handle in handles:
        run(handle, handle.optimizer(lr=1e-2), 16)
    for name in shapes:
        a, b = (handle.edit().changes[name].delta() for handle in handles)
        torch.testing.assert_close(a, b.T, rtol=1e-4, atol=1e-6)
        assert a.any()


def test_a_head_is_trained_without_weight_decay():
    model = network()
    handle = method(targets=("0",), density=0.05).attach(model, steps=20, head=("2",))
    optimizer = handle.optimizer(lr=1e-2, weight_decay=30.0)
    decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decayed[id(model[2].weight)] == 0.0
    assert decayed[id(handle.trained()["0.weight"])] == 30.0
    before = model[2].weight.detach().clone()
    run(handle, optimizer, 8)
    assert not torch.equal(model[2].weight, before)
    assert set(handle.edit().changes) == {"0.weight", "2.weight", "2.bias"}


def test_memory_of_adam_is_that_of_the_deltas():
    sizes = {}
    for density in (0.05, 0.1, 0.2):
        handle = method(density=density).attach(network(), steps=20)
        optimizer = handle.optimizer(lr=1e-2)
        run(handle, optimizer, 4)
        k = sum(len(at) for at in handle.selected.indices.values())
        held = sum(
            t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values()
        )
        assert held == 12 * k
        sizes[k] = held
    assert all(b > a for a, b in pairwise(sizes))
    other = method(algorithm="ma").attach(network(), steps=20)
    optimizer = other.optimizer(lr=1e-2)
    run(other, optimizer, 4)
    assert sum(t.numel() for s in optimizer.state.values() for t in s.values()) == 32 + 26


# ---- edits ---------------------------------------------------------------------------------------


def test_adapters_are_switched_by_name_to_the_bit(tmp_path):
    model = network()
    start = bits(model)
    adapters, adapted = Adapters(model), {}
    for name, seed in (("first", 0), ("second", 1)):
        handle = method().attach(model, steps=10, seed=seed, name=name)
        run(handle, handle.optimizer(lr=1e-2), 10)
        handle.sync()
        adapted[name] = bits(model)
        adapters.add(name, Edit.load(handle.detach().save(tmp_path / f"{name}.safetensors")))
        assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
    for name in ("first", "second", "first"):
        adapters.use(name)
        assert all(torch.equal(p, adapted[name][n]) for n, p in model.named_parameters())
    with adapters.using("first", "second"):
        assert adapters.active == ("first", "second")
    assert all(torch.equal(p, adapted["first"][n]) for n, p in model.named_parameters())
    with pytest.raises(UnknownNameError, match="third"):
        adapters.use("third")
    assert adapters.active == ("first",)
    adapters.remove("first")
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())


def test_merging_is_what_was_trained():
    model = network()
    handle = method().attach(model, steps=10)
    run(handle, handle.optimizer(lr=1e-2), 10)
    out = model(batch(0)[0])
    handle.detach(merge=True)
    assert torch.equal(model(batch(0)[0]), out)
    assert all(p.requires_grad for p in model.parameters())


def test_positions_follow_a_moving_target():
    """Only entries of one row matter: they are found."""
    torch.manual_seed(0)
    model = nn.Linear(30, 30, bias=False)
    wanted = model.weight.detach().clone()
    wanted[7] += 1.0
    model = nn.Sequential(model)
    handle = SpIEL(budget=30, reselection_steps=8, accumulation_steps=2).attach(model, steps=80)
    optimizer = handle.optimizer(lr=5e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(80):
        x = torch.randn(64, 30, generator=generator)
        F.mse_loss(model(x), x @ wanted.T).backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = handle.selected.indices["0.weight"] // 30
    assert int((rows == 7).sum()) == 30


def test_a_deep_copy_of_the_model_is_a_plain_model():
    model = network()
    handle = method().attach(model, steps=10)
    run(handle, handle.optimizer(lr=1e-2), 4)
    handle.sync()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(batch(0)[0]), model(batch(0)[0]))


# ---- large layers with few deltas ----------------------------------------------------------------


@pytest.mark.parametrize("conv1d", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("changes", [{}, {"algorithm": "ma"}, {"growth": "none"}], ids=str)
def test_sampled_gradients_train_the_same(changes, conv1d):
    def big():
        torch.manual_seed(0)
        if conv1d:
            pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
            return nn.Sequential(pytorch_utils.Conv1D(400, 400), nn.Tanh(), nn.Linear(400, 2))
        return nn.Sequential(nn.Linear(400, 400), nn.Tanh(), nn.Linear(400, 2))

    x = torch.randn(6, 400, generator=torch.Generator().manual_seed(1))
    results, out = [], None
    for sampled in (True, False):
        model = big()
        handle = SpIEL(
            budget=300, reselection_steps=5, accumulation_steps=2, sampled=sampled,
            targets=("0", "2"), **changes,
        ).attach(model, steps=12)
        assert ("forward" in model[0].__dict__) is sampled
        optimizer = handle.optimizer(lr=1e-2)
        for step in range(12):
            (model(x).square().mean()).backward()
            if step == 6:  # resumed in the middle of a run
                handle.load_state_dict(handle.state_dict())
            optimizer.step()
            optimizer.zero_grad()
            assert model[0].weight.grad is None
        out = model(x)
        edit = handle.detach()
        assert "forward" not in model[0].__dict__
        assert torch.equal(model[0].weight, big()[0].weight)
        results.append((edit, out))
    (one, mine), (two, theirs) = results
    for name, change in two.changes.items():
        assert torch.equal(one.changes[name].indices, change.indices)
        torch.testing.assert_close(one.changes[name].values, change.values, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


# ---- 4-bit bases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ag", "ma"])
def test_a_packed_base_trains_like_its_dense_twin(algorithm):
    packed = network()
    pack(packed, ["0", "2"])
    dense = unpack(copy.deepcopy(packed))
    handles = [method(algorithm=algorithm).attach(m, steps=20, seed=3) for m in (packed, dense)]
    assert handles[0].packed
    optimizers = [handle.optimizer(lr=1e-2) for handle in handles]
    for handle, optimizer in zip(handles, optimizers, strict=True):
        run(handle, optimizer, 11)
    again = method(algorithm=algorithm).attach(  # resumed on the packed base
        pack_twin(), steps=20, seed=9
    )
    again.load_state_dict(handles[0].state_dict())
    second = again.optimizer(lr=1e-2)
    second.load_state_dict(optimizers[0].state_dict())
    for handle, optimizer in (
        (handles[0], optimizers[0]), (handles[1], optimizers[1]), (again, second)
    ):
        run(handle, optimizer, 20, first=11)
    one, two, three = (handle.edit() for handle in (*handles, again))
    assert one.base == two.base
    for name, change in two.changes.items():
        assert torch.equal(one.changes[name].indices, change.indices)
        torch.testing.assert_close(one.changes[name].values, change.values, rtol=1e-4, atol=1e-6)
        assert torch.equal(one.changes[name].values, three.changes[name].values)
    x = batch(0)[0]
    adapted, start = dense(x), unpack(pack_twin())(x)
    with handles[0].off():
        torch.testing.assert_close(packed(x), start)
    with pytest.warns(PassbandWarning, match="4 bits"):
        handles[0].detach(merge=True)
    one.apply(other := unpack(pack_twin()))  # nothing is lost here
    torch.testing.assert_close(other(x), adapted, rtol=1e-4, atol=1e-5)


def pack_twin() -> nn.Module:
    model = network()
    pack(model, ["0", "2"])
    return model


def test_large_packed_layers_sample_their_gradient_between_phases():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 400))
    pack(model, ["0"])
    handle = SpIEL(budget=60, reselection_steps=4, accumulation_steps=1).attach(model, steps=8)
    optimizer = handle.optimizer(lr=1e-2)
    seen = []
    look = handle.selected.on_gradient
    handle.selected.on_gradient = lambda name, g: (seen.append(handle.count), look(name, g))
    x = torch.randn(4, 400)
    for _ in range(8):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert seen == [0, 4]
    with pytest.raises(DataError, match="no packed layer"):
        SpIEL(targets=("q_proj",)).attach(pack_twin(), steps=8)


# ---- replicas ------------------------------------------------------------------------------------


def replica(rank: int, folder: str) -> None:
    """One of two processes, each with half of every batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    handle = method().attach(network(), steps=12, seed=1)
    optimizer = handle.optimizer(lr=1e-2)
    for step in range(12):
        x, y = batch(step)
        half = slice(4 * rank, 4 * rank + 4)
        (handle.model(x[half]) - y[half]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.distributed.destroy_process_group()
    handle.edit().save(f"{folder}/{rank}.safetensors")


def test_replicas_stay_alike_and_train_like_one(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch without torch.distributed")
    torch.multiprocessing.spawn(replica, args=(str(tmp_path),), nprocs=2)
    alone = method().attach(network(), steps=12, seed=1)
    run(alone, alone.optimizer(lr=1e-2), 12)
    one, two = (Edit.load(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, change in alone.edit().changes.items():
        assert torch.equal(one.changes[name].indices, two.changes[name].indices)
        assert torch.equal(one.changes[name].values, two.changes[name].values)
        assert torch.equal(one.changes[name].indices, change.indices)
        torch.testing.assert_close(one.changes[name].values, change.values, rtol=1e-3, atol=1e-5)

"""Schedules, streams, batches, averages and checkpoints, each by itself."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from passband.bench import checkpoint
from passband.bench.batches import Examples, Flow, open_source
from passband.bench.ema import swapped
from passband.bench.schedule import crossed, factor
from passband.bench.streams import Streams
from passband.errors import CheckpointError

# ---- schedules ---------------------------------------------------------------------------------


def at(name: str, step: int, total: int = 100, **options: float) -> float:
    return factor(name, steps=step, fraction=step / total, **options)


def test_cosine_and_linear_have_their_closed_forms():
    for step in (0, 25, 50, 100):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2
        assert at("cosine", step, final=0.1) == pytest.approx(expected)
        assert at("linear", step) == pytest.approx(1 - step / 100)


@pytest.mark.parametrize("warmup", [20, 0.2])
def test_warmup_rises_to_one_and_hands_over(warmup):
    assert at("constant", 5, warmup=warmup) == pytest.approx(0.25)
    assert at("linear", 20, warmup=warmup) == pytest.approx(1.0)
    assert at("linear", 60, warmup=warmup) == pytest.approx(0.5)
    assert at("cosine", 100, warmup=warmup) == pytest.approx(0.0)


@pytest.mark.parametrize("every", [30, 0.3])
def test_step_drops_at_its_multiples(every):
    options = {"drop_every": every, "drop": 0.5}
    found = [at("step", s, **options) for s in (0, 29, 30, 59, 60, 90)]
    assert found == [1, 1, 0.5, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("places", [(80, 120), (80 / 150, 0.8)])
def test_step_drops_at_given_places(places):
    found = [at("step", s, 150, drop_at=places, drop=0.01) for s in (0, 79, 80, 119, 120, 149)]
    assert found == pytest.approx([1, 1, 0.01, 0.01, 0.0001, 0.0001])


def test_restarts_are_those_of_torch():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, eta_min=1e-3)
    for step in range(150):
        ours = 0.02 * at("cosine", step, 150, final=0.05, periods=15)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        torchs.step()
    assert at("cosine", 150, 150, final=0.05, periods=15) == pytest.approx(0.05)


def test_crossed_finds_every_multiple_once():
    assert sum(crossed(i / 1000, (i + 1) / 1000, 0.05) for i in range(1000)) == 20
    assert crossed(3, 17, 10) and not crossed(10, 19, 10)


# ---- streams -----------------------------------------------------------------------------------


def test_a_position_fixes_what_follows_whatever_was_drawn_before():
    one, two = Streams(3).train, Streams(3).train
    torch.rand(100, generator=one.torch)
    one.numpy.random(7)
    for stream in (one, two):
        stream.at(5)
    assert torch.equal(torch.rand(4, generator=one.torch), torch.rand(4, generator=two.torch))
    assert np.array_equal(one.numpy.random(4), two.numpy.random(4))


def test_streams_seeds_and_processes_differ_where_they_should():
    draw = lambda stream: float(torch.rand((), generator=stream.torch))  # noqa: E731
    a, b = Streams(0), Streams(0).for_process(1)
    assert len({draw(s) for s in (a.data, a.init, a.train, b.train, Streams(1).train)}) == 5
    assert draw(Streams(0).data) == draw(Streams(0).for_process(1).data)


def test_initialising_leaves_the_callers_state():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with Streams(0).initialising():
        one = nn.Linear(3, 3)
    assert torch.equal(torch.rand(2), expected)
    with Streams(0).initialising():
        assert torch.equal(nn.Linear(3, 3).weight, one.weight)


# ---- batches -----------------------------------------------------------------------------------


def take(source, start: int, steps: int) -> list:
    batches = source.steps(start)
    return [next(batches) for _ in range(steps)]


def test_every_epoch_is_a_permutation_and_a_start_is_a_position():
    source = Examples(torch.arange(10), 4, Streams(0).data)
    seen = torch.cat([batch for step in take(source, 0, 5) for batch, _ in step])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    later = take(Examples(torch.arange(10), 4, Streams(0).data), 3, 1)
    assert torch.equal(later[0][0][0], seen[12:16])


@pytest.mark.parametrize(("parts", "processes"), [(1, 1), (3, 1), (2, 2), (1, 3)])
def test_micro_batches_of_all_processes_make_the_batch_and_weights_its_mean(parts, processes):
    values = torch.arange(20, dtype=torch.float64) ** 2
    stream, split = Streams(2).data, {"parts": parts, "processes": processes}
    whole = take(Examples(values, 7, stream), 4, 1)[0][0][0]
    shares = [
        take(Examples(values, 7, stream, process=p, **split), 4, 1) for p in range(processes)
    ]
    micro = [m for share in shares for m in share[0]]
    assert torch.equal(torch.cat([batch for batch, _ in micro]), whole)
    mean = sum(weight * batch.mean() for batch, weight in micro) / processes
    assert float(mean) == pytest.approx(float(whole.mean()))


class Crops:
    """Random examples: `draw` gets its own generator."""

    def __len__(self):
        return 6

    def draw(self, index, rng):
        return torch.tensor([index, rng.random()])


@pytest.mark.parametrize("workers", [0, 2])
def test_random_examples_depend_on_their_number_alone(workers):
    whole = take(Examples(Crops(), 3, Streams(0).data), 0, 4)
    later = take(Examples(Crops(), 3, Streams(0).data, workers=workers), 2, 2)
    for (a,), (b,) in zip(whole[2:], later, strict=True):
        assert torch.equal(a[0], b[0])
    first, second = (torch.cat([s[0][0] for s in whole[i : i + 2]]) for i in (0, 2))
    assert set(first[:, 0].tolist()) == set(second[:, 0].tolist())  # the same examples again
    assert not set(first[:, 1].tolist()) & set(second[:, 1].tolist())  # new crops


def test_dictionaries_and_datasets_are_collated():
    rows = [{"x": np.full(2, i, dtype=np.float32), "y": i} for i in range(5)]
    batch = take(Examples(rows, 2, Streams(0).data, shuffle=False), 0, 1)[0][0][0]
    assert batch["x"].shape == (2, 2) and batch["y"].tolist() == [0, 1]
    x, y = take(Examples(TensorDataset(torch.arange(4), torch.arange(4) * 2), 4,
                         Streams(0).data), 0, 1)[0][0][0]
    assert torch.equal(y, 2 * x)


def test_a_flow_starts_over_and_skips_to_its_position():
    batches = [torch.full((2,), i) for i in range(3)]
    flow = Flow(batches)
    assert [int(b[0]) for ((b, _),) in take(flow, 0, 5)] == [0, 1, 2, 0, 1]
    assert flow.examples == 2
    assert [int(b[0]) for ((b, _),) in take(Flow(batches), 4, 2)] == [1, 2]
    second = Flow(batches, process=1, processes=2)
    assert [int(b[0]) for ((b, _),) in take(second, 0, 3)] == [1, 0, 2]


def test_the_right_source_is_opened():
    options = {"batch_size": 2, "shuffle": True, "parts": 1, "process": 0, "processes": 1,
               "workers": 0}
    stream = Streams(0).data
    kinds = [type(open_source(d, stream, stream.torch, **options)).__name__
             for d in (None, [1, 2, 3], Crops(), iter([1]))]
    assert kinds == ["SelfMade", "Examples", "Examples", "Flow"]


# ---- swaps and checkpoints -----------------------------------------------------------------------


def test_swapped_puts_weights_back_even_after_an_error():
    weights = {"w": torch.ones(2)}
    with pytest.raises(RuntimeError), swapped(weights, {"w": torch.zeros(2)}):
        assert not weights["w"].any()
        raise RuntimeError
    assert weights["w"].all()


def test_checkpoints_keep_every_kind_of_value(tmp_path):
    shared = torch.arange(6.0)
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "none": None}}, "betas": (0.9, 0.999),
        "list": [1, 0.1 + 0.2, True, "text", [None, shared[::2]]], "same": shared,
        "half": torch.ones(2, dtype=torch.bfloat16), "inf": float("inf"), "empty": {},
    }
    checkpoint.save(tmp_path / "c", tree, {"seed": 1})
    back = checkpoint.restore(tmp_path / "c", {"seed": 1})
    assert back["betas"] == (0.9, 0.999) and isinstance(back["betas"], tuple)
    assert back["state"][0]["none"] is None and back["list"][:4] == tree["list"][:4]
    assert torch.equal(back["list"][4][1], shared[::2]) and torch.equal(back["same"], shared)
    assert back["half"].dtype == torch.bfloat16 and back["inf"] == float("inf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_checkpoints_refuse_what_would_need_pickling(tmp_path):
    with pytest.raises(CheckpointError, match="a/0 is a set"):
        checkpoint.save(tmp_path / "c", {"a": [{1}]}, {})


def test_a_half_replaced_checkpoint_is_put_back(tmp_path):
    checkpoint.save(tmp_path / "c", {"a": 1}, {})
    (tmp_path / "c").rename(tmp_path / ".c.old")
    assert checkpoint.exists(tmp_path / "c")
    assert checkpoint.restore(tmp_path / "c", {}) == {"a": 1}


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", {"a": 1}, {})
    file = tmp_path / "c" / "facts.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format = 99"):
        checkpoint.restore(tmp_path / "c", {})
    with pytest.raises(CheckpointError, match="can't be read"):
        checkpoint.restore(tmp_path / "nothing", {})

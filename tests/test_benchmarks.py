"""The benchmarks run, and compare things that are equal."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from passband.pde.gp_hm.model import GridGP
from passband.pde.tasks import TASKS

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.parametrize("task", ["poisson1d-single", "poisson2d-sin-sin"])
@pytest.mark.parametrize("kernel", ["stm", "gm"])
def test_the_naive_objective_and_gradient_are_ours(load, task, kernel):
    problem, points = TASKS[task].data(0).train, 24
    ours = GridGP(problem, [points] * problem.dim, [2.0] * problem.dim, kernel, components=4)
    naive = load("_autodiff").AutodiffGP(problem, points, 2.0, kernel, components=4)
    rng = np.random.default_rng(0)
    u = torch.from_numpy(rng.standard_normal(ours.u.shape))
    log_t = torch.from_numpy(rng.standard_normal(2))
    thetas = [torch.from_numpy(0.3 * rng.standard_normal((3, 4))) for _ in problem.axes]
    for model, blocks in ((ours, ours.prior.thetas), (naive, naive.thetas)):
        with torch.no_grad():
            model.u.copy_(u)
            model.log_t.copy_(log_t)
            for block, theta in zip(blocks, thetas, strict=True):
                block.add_(theta)
        model.log_joint().backward()
    assert ours.log_joint().item() == pytest.approx(naive.log_joint().item(), rel=1e-8)
    pairs = [(ours.u, naive.u), (ours.log_t, naive.log_t)]
    pairs += list(zip(ours.prior.thetas, naive.thetas, strict=True))
    for a, b in pairs:
        assert (a.grad - b.grad).norm() <= 1e-6 * b.grad.norm()


def test_step_measures_both(load, capsys, monkeypatch):
    pde = load("pde")
    monkeypatch.setattr(pde, "in_fresh_process", lambda work, *a, **k: work(*a, **k))
    (row,) = pde.step(quick=True, sizes=[50])
    assert (row["task"], row["points"]) == ("poisson1d-single", 50)
    assert row["apart"] < 1e-8
    assert row["ratio"] == pytest.approx(row["naive"]["seconds"] / row["ours"]["seconds"])
    assert "poisson1d-single" in capsys.readouterr().out


def test_a_model_that_differs_is_not_timed(load, monkeypatch):
    pde = load("pde")
    monkeypatch.setattr(pde.AutodiffGP, "log_joint", lambda self: self.u.sum() + 1.0)
    with pytest.raises(SystemExit, match="objectives differ"):
        pde.step_pair("poisson1d-single", 20, "gm")


def test_work_in_a_fresh_process(load):
    timing = load("_timing")
    assert timing.in_fresh_process(math.sqrt, 4.0) == 2.0


def test_exponent(load):
    timing = load("_timing")
    sizes = [1, 10, 20, 40]
    assert timing.exponent(sizes, [5.0] + [3.0 * s**2.5 for s in sizes[1:]]) == pytest.approx(2.5)
    assert timing.exponent(sizes, [1, 1, 1, 9], least=2.0) is None


def test_table_aligns_numbers(load, capsys):
    load("_timing").print_table("title", ("name", "n"), [("a", "1"), ("bb", "22")])
    assert capsys.readouterr().out.splitlines()[-2:] == ["  a      1", "  bb    22"]


# ---- fine-tuning -----------------------------------------------------------------------------


def test_works_take_turns(load):
    timing, order = load("_timing"), []
    works = {name: (lambda given, name=name: order.append(name + given)) for name in "ab"}
    taken = timing.interleaved(works, 2, prepare={"a": lambda: "1", "b": lambda: "2"})
    assert order == ["a1", "b2", "b2", "a1", "a1", "b2"]  # the first of each is not counted
    assert [len(taken[name]) for name in "ab"] == [2, 2]
    assert timing.cheapest([(9.0, 3.0), (1.0, 5.0)]) == 3.0


@pytest.fixture(scope="module")
def tiny_rows():
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        methods, tuning = importlib.import_module("_methods"), importlib.import_module("tuning")
        job = methods.language("tiny", 1, length=16, width=64, ffn=96, layers=2, heads=2)
        arms = [*methods.references(), *methods.parts(), *methods.systems(job)]
        return {row["arm"]: row for row in tuning.steps_on(job, arms, rounds=1, turn=0.0)}


def test_every_method_is_timed(tiny_rows):
    """A room of the family that can train is in the table, without a word about it there."""
    names = {name.split()[0] for name in tiny_rows}
    assert {"full", "peft", "entries", "blocks", "hft", "sara", "lt-sft", "sorsa"} <= names
    for row in tiny_rows.values():
        assert row["seconds"] > 0 and row["memory"] > 0 and row["kept"] >= 0
        assert row["times"]["full"] == pytest.approx(
            row["seconds"] / tiny_rows["full AdamW"]["seconds"]
        )


def test_what_is_compared_is_of_one_size(tiny_rows):
    shira = tiny_rows["peft SHiRA r=8"]["trained"]
    assert shira == tiny_rows["peft LoRA r=8"]["trained"] == 8 * 2 * (4 * 128 + 3 * 160)
    assert tiny_rows["entries (parts)"]["trained"] == shira
    for name in ("sara", "lt-sft", "blocks (parts)"):
        assert tiny_rows[name]["trained"] == pytest.approx(shira, rel=0.02)
    entries = tiny_rows["entries (parts)"]
    # m and v in fp32, and a step count for each of the 14 tensors
    assert entries["optimizer"] == 2 * 4 * shira + 4 * 14
    assert entries["memory"] < tiny_rows["full AdamW"]["memory"]


def test_aims_are_judged(load, tiny_rows, capsys):
    tuning = load("tuning")
    row = dict(tiny_rows["entries (parts)"], times={"shira": 0.9, "lora": 1.2},
               sizes={"shira": 0.5, "lora": 1.0})
    tuning.show_aims([row])
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[-1] for line in lines] == ["yes", "no"]


def test_decompositions_that_are_timed_give_the_same_adapters(load):
    pytest.importorskip("peft")
    tuning = load("tuning")
    works = tuning.start_works(*tuning.layers(24, 40), rank=3)
    made = {name: work(prepare()) for name, (prepare, work) in works.items()}
    for ours, theirs in tuning.STARTS.items():
        for name in ("0", "2"):
            factors = made[ours].factors[name]
            layer = dict(made[theirs].model.named_modules())[name]
            expected = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            product = factors.scaled_left() @ factors.A
            assert (product - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize(
    ("work", "sizes"),
    [("topk", (1 << 19,)), ("quantile", (1 << 19,)), ("intruders", (24, 40)), ("edits", (64,)),
     ("fingerprints", (1 << 19,))],
)
def test_choices_are_measured(load, work, sizes):
    """Each function raises `SystemExit` where what it compares differs."""
    pytest.importorskip("peft")
    rows = getattr(load("tuning"), work)(*sizes)
    assert rows
    for row in rows:
        assert row["ratio"] == pytest.approx(row["other"] / row["seconds"])


def test_searches_are_compared_at_equal_results(load, monkeypatch):
    retrieval = load("retrieval")
    rows = retrieval.search_pairs(200, 20, 1)
    assert rows[0]["what"] == "ours" and rows[0]["ratio"] == 1
    assert {"bm25s, NumPy", "scipy product"} <= {row["what"] for row in rows}
    right = retrieval.DenseIndex.find
    monkeypatch.setattr(retrieval.DenseIndex, "find", lambda self, q, k: right(self, -q, k))
    with pytest.raises(SystemExit, match="results differ"):
        retrieval.dense_pairs(200, 2, 8, 1)


def test_the_head_is_held_against_others_in_memory_too(load):
    """States, decoder and bias end with gradients; whoever keeps logits keeps B L V of them."""
    pytest.importorskip("sentence_transformers")
    rows = {row["what"]: row for row in load("retrieval").head_pairs(2, 32, 8, 2048, 1)}
    logits = 4 * 2 * 32 * 2048
    for name in ("naive", "sentence-transformers"):
        assert rows[name]["bytes"] > 2 * logits
    assert rows["ours"]["bytes"] < logits
    gradients = 4 * (2 * 32 * 8 + 2048 * 8 + 2048)
    assert all(row["bytes"] - row["own"] == gradients for row in rows.values())

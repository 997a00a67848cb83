"""The K largest over many tensors, against sorting everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passband.errors import ConfigError, DataError
from passband.tuning.lt_sft import selection
from passband.tuning.lt_sft.selection import Given, Moved, largest, per_tensor, uniform


def sorted_out(scores: dict[str, np.ndarray], count: int) -> dict[str, list[int]]:
    """Stable descending sort of everything joined: ties by tensor, then by index."""
    joined = np.concatenate([s.reshape(-1) for s in scores.values()])
    chosen = np.sort(np.argsort(-joined, kind="stable")[:count])
    found, start = {}, 0
    for name, score in scores.items():
        mine = chosen[(chosen >= start) & (chosen < start + score.size)] - start
        start += score.size
        if len(mine):
            found[name] = mine.tolist()
    return found


def lists(chosen: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: at.tolist() for name, at in chosen.items()}


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(1, 40),
)
def test_ties_go_to_the_first(values: list[list[int]], count: int) -> None:
    scores = {f"t{i}": np.array(v, dtype=np.float32) for i, v in enumerate(values)}
    positive = sum(int((s > 0).sum()) for s in scores.values())
    given_scores = Given({n: torch.from_numpy(s) for n, s in scores.items()})
    if count > positive:
        with pytest.raises(DataError, match=f"but {positive} of"):
            largest(given_scores, count)
    else:
        assert lists(largest(given_scores, count)) == sorted_out(scores, count)


@pytest.mark.parametrize("count", [1, 1000, 150_000, 1_400_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_by_sampled_bound(count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    before = {
        n: torch.randn(size, generator=generator).to(dtype)
        for n, size in (("a", (1000, 700)), ("b", (3,)), ("c", (900_000,)))
    }
    after = {n: (t.float() + torch.randn(t.shape, generator=generator)).to(dtype)
             for n, t in before.items()}
    assert sum(t.numel() for t in after.values()) > 4 * selection.SAMPLE
    scores = {n: (after[n].float() - before[n].float()).abs().numpy() for n in after}
    chosen = largest(Moved(before, after), count)
    assert lists(chosen) == sorted_out(scores, count)


def test_an_unlucky_sample_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_bound", lambda *_: 3.0)
    scores = {"a": np.abs(np.random.default_rng(0).standard_normal(1000)).astype(np.float32)}
    tensors = {n: torch.from_numpy(s) for n, s in scores.items()}
    assert lists(largest(Given(tensors), 400)) == sorted_out(scores, 400)


def test_what_is_taken_is_not_chosen_again() -> None:
    scores = {"a": np.arange(1, 11, dtype=np.float32), "b": np.array([20.0, 0.5], np.float32)}
    tensors = {n: torch.from_numpy(s) for n, s in scores.items()}
    first = largest(Given(tensors), 3)
    assert lists(first) == {"a": [8, 9], "b": [0]}
    assert lists(largest(Given(tensors), 2, taken=first)) == {"a": [6, 7]}
    with pytest.raises(DataError, match="10 entries are wanted, but 9"):
        largest(Given(tensors), 10, taken=first)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(bad: float) -> None:
    values = torch.ones(10)
    values[4] = bad
    with pytest.raises(DataError, match="second has NaN"):
        largest(Given({"first": torch.ones(3), "second": values}), 2)


def test_shares_of_every_tensor() -> None:
    scores = {"a": torch.arange(1.0, 101.0), "b": torch.arange(1.0, 11.0), "c": torch.ones(7)}
    chosen = per_tensor(Given(scores), 23)
    assert {n: len(at) for n, at in chosen.items()} == {"a": 20, "b": 2, "c": 1}
    assert chosen["a"].tolist() == list(range(80, 100))


def test_uniform_positions() -> None:
    sizes = {"a": 400, "b": 100}
    counts = np.zeros(500)
    for seed in range(400):
        chosen = uniform(sizes, 50, seed)
        assert sum(map(len, chosen.values())) == 50
        for name, offset in (("a", 0), ("b", 400)):
            at = chosen.get(name, torch.empty(0, dtype=torch.long))
            assert at.tolist() == sorted(set(at.tolist()))
            counts[at.numpy() + offset] += 1
    # Each position is hit 40 times on average, standard deviation 6.
    assert counts.min() > 15
    assert counts.max() < 70
    assert abs(counts[:400].mean() - counts[400:].mean()) < 3


def test_uniform_can_take_all_that_is_left() -> None:
    taken = uniform({"a": 10}, 4, seed=0)
    rest = uniform({"a": 10}, 6, seed=1, taken=taken)
    assert sorted(taken["a"].tolist() + rest["a"].tolist()) == list(range(10))
    with pytest.raises(ConfigError):
        uniform({"a": 10}, 7, seed=1, taken=taken)

"""Examples keep their place, whatever selects them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler

from passband.errors import DataError
from passband.parts.indexed import Indexed, Item, check_index, unpack

X = torch.arange(10.0)[:, None]
WHOLE = Indexed(TensorDataset(X, torch.arange(10) % 3))


@pytest.mark.parametrize("dataset", [
    WHOLE, Subset(WHOLE, [7, 2, 2, 9]), Subset(Subset(WHOLE, [1, 3, 5]), [2, 0]),
])
def test_the_index_leads_back_to_the_example(dataset) -> None:
    sampler = WeightedRandomSampler([1.0] * len(dataset), 30)
    for x, y, index, group in DataLoader(dataset, batch_size=4, sampler=sampler):
        assert torch.equal(x, X[index]) and torch.equal(y, index % 3)
        assert index.dtype == torch.int64 and not group.any()


def test_groups_come_from_the_argument_or_from_the_data_set() -> None:
    data = TensorDataset(X, torch.arange(10))
    assert [item.group for item in Indexed(data, groups=range(10))] == list(range(10))
    data.groups = torch.ones(10)
    assert Indexed(data)[3] == Item(data[3][0], data[3][1], 3, 1)
    assert Indexed(data)[-1].index == 9
    with pytest.raises(DataError, match=r"\[4\] for 10"):
        Indexed(data, groups=[0] * 4)


def test_streams_and_triples_are_refused() -> None:
    with pytest.raises(DataError, match="generator has no len"):
        Indexed(x for x in range(3))
    with pytest.raises(DataError, match="example 1 is a tuple of 3"):
        Indexed([(0, 1), (1, 2, 3)])[1]
    with pytest.raises(IndexError):
        WHOLE[10]


def test_a_batch_without_index_names_the_wrapper() -> None:
    with pytest.raises(DataError, match=r"index is missing(.|\n)*Indexed\(dataset\)"):
        unpack([X, X])
    item = unpack((X, X, torch.arange(10)))
    assert torch.equal(item.group, torch.zeros(10, dtype=torch.int64))


@pytest.mark.parametrize("index", [
    None, torch.tensor([0, 5]), torch.tensor([-1]), torch.tensor([0.5]), torch.tensor(1),
    torch.tensor([True]),
])
def test_an_index_that_does_not_fit_is_refused(index) -> None:
    with pytest.raises(DataError, match="index"):
        check_index(index, 5)


def test_an_index_that_fits_passes() -> None:
    assert check_index([4, 0], 5).tolist() == [4, 0]
    assert check_index(torch.tensor([], dtype=torch.int32), 5).dtype == torch.int64

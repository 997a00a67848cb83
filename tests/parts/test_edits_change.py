"""Changes of one tensor against dense NumPy arithmetic in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passband.errors import CheckpointError, DataError, UnknownNameError
from passband.parts.edits import Block, Dense, LowRank, Masked, Replace, Sparse, change_of
from passband.parts.edits.place import bits
from tests.parts.edits_models import ADDITIVE, KINDS, random_change

SHAPES = [(5,), (4, 6), (3, 2, 3, 3)]
seeds = st.integers(0, 10_000)
kinds, additive = st.sampled_from(KINDS), st.sampled_from(ADDITIVE)
shapes = st.sampled_from(SHAPES)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def dense(change) -> np.ndarray:
    """The delta of an additive change, written out in NumPy."""
    out = np.zeros(change.shape)
    if isinstance(change, Dense):
        return change.values.numpy().astype(float)
    if isinstance(change, Sparse):
        for i, value in zip(change.indices.tolist(), change.values.tolist(), strict=True):
            out[np.unravel_index(i, change.shape)] = value
        return out
    if isinstance(change, Block):
        out = np.moveaxis(out, change.dim, 0)
        for row, values in zip(
            change.index.tolist(), np.moveaxis(change.values.numpy(), change.dim, 0), strict=True
        ):
            out[row] = values
        return np.moveaxis(out, 0, change.dim)
    product = change.B.double().numpy() @ change.A.double().numpy()
    if change.B0 is not None:
        product = product - change.B0.double().numpy() @ change.A0.double().numpy()
    product = change.scale * product
    return (product.T if change.transposed else product).reshape(change.shape)


@given(additive, shapes, seeds)
def test_delta_and_norm(kind, shape, seed):
    change = random_change(kind, shape, seed)
    np.testing.assert_allclose(change.delta().numpy(), dense(change), rtol=1e-5, atol=1e-5)
    assert change.norm() == pytest.approx(np.linalg.norm(dense(change)), rel=1e-5, abs=1e-6)


@given(kinds, shapes, seeds, dtypes, st.sampled_from([1.0, 0.3, -2.0, 0.0]))
def test_add_to_rounds_once_and_restores_the_bits(kind, shape, seed, dtype, scale):
    change = random_change(kind, shape, seed)
    g = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(shape, generator=g).to(dtype)
    before = weight.clone()
    saved = change.add_to(weight, scale)
    old = before.double().numpy()
    if kind == "replace":
        expected = change.values.to(dtype)
    elif kind == "masked":
        expected = torch.from_numpy(old * np.where(change.mask.numpy(), 1.0, 1.0 - scale)).to(dtype)
    else:
        expected = torch.from_numpy(old + scale * dense(change)).to(dtype)
    # One rounding to the dtype, of a sum in fp32: at most one last place away from the exact one.
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    np.testing.assert_allclose(
        weight.double().numpy(), expected.double().numpy(), rtol=2 * eps, atol=1e-5
    )
    saved.restore(weight)
    assert torch.equal(bits(weight), bits(before))


@given(additive, additive, shapes, seeds)
def test_sum(first, second, shape, seed):
    a, b = random_change(first, shape, seed), random_change(second, shape, seed + 7)
    np.testing.assert_allclose(
        (a + b).delta().numpy(), dense(a) + dense(b), rtol=1e-5, atol=1e-5
    )
    assert torch.allclose((a + b).delta(), (b + a).delta(), atol=1e-5)


@given(additive, shapes, seeds, st.floats(-3, 3))
def test_scaled(kind, shape, seed, factor):
    change = random_change(kind, shape, seed)
    np.testing.assert_allclose(
        change.scaled(factor).delta().numpy(), factor * dense(change), rtol=1e-5, atol=1e-5
    )


@given(additive, shapes, seeds)
def test_lora_equals_delta(kind, shape, seed):
    change = random_change(kind, shape, seed)
    pair = change.lora()
    if change.kind in ("dense", "sparse"):
        assert pair is None
        return
    if pair is None:
        assert len(shape) == 1 or change.dim > 0
        return
    product = pair[0].double() @ pair[1].double()
    product = product.t() if getattr(change, "transposed", False) else product
    np.testing.assert_allclose(product.reshape(shape).numpy(), dense(change), rtol=1e-5, atol=1e-5)


@given(kinds, shapes, seeds)
@settings(max_examples=50)
def test_tensors_and_facts_rebuild_it(kind, shape, seed):
    change = random_change(kind, shape, seed)
    again = change_of({"kind": change.kind, **change.facts()}, change.tensors())
    assert again.same(change)
    assert change.shape == again.shape == shape
    assert not change.same(Dense(torch.full(shape, 0.125)))


def test_same_kind_sums_stay_compact():
    shape = (6, 8)
    sparse = random_change("sparse", shape, 3) + random_change("sparse", shape, 4)
    assert isinstance(sparse, Sparse)
    rows = [Block(0, torch.tensor(i), torch.ones(2, 8), shape) for i in ([4, 1], [1, 2])]
    block = rows[0] + rows[1]
    assert isinstance(block, Block)
    assert block.index.tolist() == [1, 2, 4]
    assert block.values[:, 0].tolist() == [2.0, 1.0, 1.0]
    one = LowRank(torch.ones(6, 1), torch.ones(1, 8), scale=2.0)
    stacked = one + LowRank(torch.ones(6, 3), torch.ones(3, 8), scale=0.5)
    assert isinstance(stacked, LowRank)
    assert stacked.rank == 4
    assert isinstance(sparse + block, Dense)
    assert isinstance(block + Block(1, torch.tensor([0]), torch.ones(6, 1), shape), Dense)


def test_disjoint_blocks_fuse_exactly():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 12, generator=g)
    a = Block(1, torch.tensor([0, 5]), torch.randn(16, 2, generator=g), (16, 12))
    b = Block(1, torch.tensor([3, 11]), torch.randn(16, 2, generator=g), (16, 12))
    fused, one_by_one = weight.clone(), weight.clone()
    (a + b).add_to(fused)
    b.add_to(one_by_one)
    a.add_to(one_by_one)
    assert torch.equal(fused, one_by_one)


@pytest.mark.parametrize("dim", [0, 1])
def test_lora_of_a_block_of_transposed_weights(dim):
    values = torch.randn(2, 5) if dim == 0 else torch.randn(4, 2)
    change = Block(dim, torch.tensor([1, 3]), values, (4, 5), transposed=True)  # [in, out]
    left, right = change.lora()
    assert torch.equal((left @ right).t(), change.delta())


def test_lora_stacks_the_start_with_a_minus():
    b, a = torch.ones(3, 1), torch.full((1, 2), 2.0)
    b0, a0 = torch.full((3, 1), 5.0), torch.ones(1, 2)
    left, right = LowRank(b, a, b0, a0, scale=0.5).lora()
    assert left.tolist() == [[0.5, -2.5]] * 3
    assert right.tolist() == [[2.0, 2.0], [1.0, 1.0]]


def test_nothing_learned_is_zero_to_the_bit():
    g = torch.Generator().manual_seed(1)
    b, a = torch.randn(64, 8, generator=g), torch.randn(8, 48, generator=g)
    change = LowRank(b, a, b.clone(), a.clone(), scale=1.7)
    assert int(change.delta().count_nonzero()) == 0


def test_exactly_k_entries_are_kept():
    values = torch.tensor([0.0, 1.0, 0.0])
    change = Sparse(torch.tensor([7, 2, 4]), values, (3, 3))
    assert change.indices.tolist() == [2, 4, 7]
    assert change.values.tolist() == [1.0, 0.0, 0.0]
    cancelled = change + change.scaled(-1.0)
    assert len(cancelled.indices) == 3


def test_lost_to_rounding():
    weight = torch.ones(4, dtype=torch.bfloat16)  # spacing above 1: 2^-7
    change = Dense(torch.tensor([2.0**-10, 0.0, 2.0**-7, 2.0**-9]))
    saved = change.add_to(weight)
    assert (saved.changed, saved.lost) == (3, 2)
    assert weight.tolist() == [1.0, 1.0, 1.0 + 2.0**-7, 1.0]
    # The sum is rounded once: two halves that would each be lost arrive together.
    both = torch.ones(1, dtype=torch.bfloat16)
    (Dense(torch.tensor([2.0**-8])) + Dense(torch.tensor([2.0**-8]))).add_to(both)
    assert both.item() == 1.0 + 2.0**-7


def test_sparse_entries_of_a_channels_last_kernel():
    weight = torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)
    change = Sparse(torch.tensor([5]), torch.tensor([1.0]), (2, 3, 2, 2))
    saved = change.add_to(weight)
    assert weight[0, 1, 0, 1] == 1.0  # 5 = 1 * 4 + 0 * 2 + 1
    assert weight.sum() == 1.0
    saved.restore(weight)
    assert weight.sum() == 0.0


def test_large_sparse_edits_make_no_dense_temporaries():
    shape = (1 << 17, 1 << 14)  # 2^31 entries: 8 GB if anything were dense
    a = Sparse(torch.tensor([2**31 - 1, 5]), torch.tensor([1.0, 2.0]), shape)
    both = (a + a.scaled(0.5)).scaled(2.0)
    assert both.values.tolist() == [6.0, 3.0]
    assert both.norm() == pytest.approx(45**0.5)
    assert both.tensors()["indices"].dtype == torch.int64
    smaller = Sparse(torch.tensor([5]), torch.tensor([2.0]), (1 << 17, (1 << 14) - 1))
    assert smaller.tensors()["indices"].dtype == torch.int32


def test_masks():
    a = Masked(torch.tensor([True, True, False, False]))
    b = Masked(torch.tensor([True, False, True, False]))
    assert (a + b).mask.tolist() == [True, False, False, False]
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    a.scaled(0.25).add_to(weight)
    assert weight.tolist() == [1.0, 2.0, 2.25, 3.0]
    assert a.delta(torch.ones(4)).tolist() == [0.0, 0.0, -1.0, -1.0]
    kernel = torch.zeros(2, 4, 3, 3, dtype=torch.bool)
    kernel[:, 1] = True
    assert Masked(kernel, pattern=(1, 4)).shape == (2, 4, 3, 3)  # groups along the input channels


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Sparse(torch.tensor([6]), torch.ones(1), (2, 3)), "0 to 5"),
        (lambda: Sparse(torch.tensor([-1]), torch.ones(1), (2, 3)), "from -1"),
        (lambda: Sparse(torch.tensor([1, 1]), torch.ones(2), (2, 3)), "repeated"),
        (lambda: Sparse(torch.tensor([1]), torch.ones(2), (2, 3)), "one value per index"),
        (lambda: Sparse(torch.tensor([1.0]), torch.ones(1), (2, 3)), "integers"),
        (lambda: Dense(torch.ones(2, dtype=torch.long)), "floating-point"),
        (lambda: Replace(torch.ones(2, dtype=torch.long)), "floating-point"),
        (lambda: Block(2, torch.tensor([0]), torch.ones(1, 3), (2, 3)), "0 to 1"),
        (lambda: Block(0, torch.tensor([0]), torch.ones(2, 3), (2, 3)), r"\(1, 3\)"),
        (lambda: Block(0, torch.tensor([0, 0]), torch.ones(2, 3), (2, 3)), "repeated"),
        (lambda: LowRank(torch.ones(2, 1), torch.ones(2, 3)), r"A \[r, n\]"),
        (lambda: LowRank(torch.ones(2, 1), torch.ones(1, 3), shape=(3, 2)), "transposed=True"),
        (lambda: LowRank(torch.ones(2, 1), torch.ones(1, 3), shape=(6,)), "shape"),
        (lambda: LowRank(torch.ones(2, 1), torch.ones(1, 3), torch.ones(2, 1)), "alone"),
        (lambda: LowRank(torch.ones(2, 1), torch.ones(1, 3), scale=float("nan")), "finite"),
        (lambda: Masked(torch.ones(4)), "bool"),
        (lambda: Masked(torch.ones(4, dtype=torch.bool), pattern=(2, 4)), "keep more than 2"),
        (lambda: Masked(torch.ones(6, dtype=torch.bool), pattern=(2, 4)), "multiple of 4"),
        (lambda: Masked(torch.ones(4, dtype=torch.bool), pattern=(5, 4)), "N <= M"),
        (lambda: Dense(torch.ones(2)) + Dense(torch.ones(3)), "same tensor"),
        (lambda: Dense(torch.ones(2)) + Replace(torch.ones(2)), "no sum"),
        (lambda: Masked(torch.ones(2, dtype=torch.bool)) + Dense(torch.ones(2)), "no sum"),
        (lambda: Replace(torch.ones(2)).norm(), "no norm"),
        (lambda: Replace(torch.ones(2)).delta(), r"delta\(weight\)"),
        (lambda: Masked(torch.ones(2, dtype=torch.bool)).delta(), r"delta\(weight\)"),
        (lambda: Dense(torch.ones(2)).scaled(float("inf")), "finite"),
        (lambda: Dense(torch.ones(2)).add_to(torch.ones(3)), r"shape \(2,\)"),
        (lambda: Dense(torch.ones(2)).add_to(torch.ones(2, dtype=torch.int8)), "quantised"),
        (lambda: Dense(torch.ones(2)).add_to(torch.ones(2, device="meta")), "meta"),
        (lambda: Dense(torch.full((2,), 1e5)).add_to(torch.ones(2).half()), "NaN or infinity"),
    ],
)
def test_bad_input(build, text):
    with pytest.raises(DataError, match=text):
        build()


def test_unknown_kind_and_missing_parts():
    with pytest.raises(UnknownNameError, match="sparse"):
        change_of({"kind": "sparce"}, {})
    with pytest.raises(CheckpointError, match="values"):
        change_of({"kind": "sparse", "shape": [2]}, {"indices": torch.tensor([0])})
    with pytest.raises(CheckpointError, match="bit mask"):
        Sparse.build(
            {"mask": torch.zeros(3, dtype=torch.uint8), "values": torch.ones(1)}, {"shape": [4]}
        )

"""Files of edits: what comes back, how large they are, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from passband.errors import CheckpointError, DataError
from passband.parts.edits import (
    Dense,
    Edit,
    LowRank,
    Masked,
    Replace,
    Sparse,
    fingerprint,
    from_composable_sft,
)
from tests.parts.edits_models import KINDS, Everything, copy_of, random_changes


def kept(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def sparse(count, numel, seed=0):
    g = torch.Generator().manual_seed(seed)
    at = torch.randperm(numel, generator=g)[:count]
    return Sparse(at, torch.randn(count, generator=g), (numel,))


@given(seed=st.integers(0, 10_000), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=30)
def test_round_trip(tmp_path_factory, seed, dtype):
    model = Everything(dtype)
    about = {"method": "test", "config": {"rank": 2}, "targets": ["a", "b"], "none": None}
    edit = Edit(random_changes(model, KINDS, seed), fingerprint(model), about)
    again = Edit.load(edit.save(tmp_path_factory.mktemp("edit") / "new" / "edit.safetensors"))
    assert again.base == edit.base
    assert again.about == about
    assert list(again.changes) == list(edit.changes)
    assert all(again.changes[n].same(change) for n, change in edit.changes.items())
    with edit.apply(model):
        adapted = copy_of(model)
    with again.apply(model):
        assert all(torch.equal(p, adapted[n]) for n, p in model.named_parameters())


def test_indices_take_32_bits_and_dense_ones_a_mask(tmp_path):
    thin, thick = sparse(29, 1000), sparse(31, 1000)
    edit = Edit({"thin": thin, "thick": thick})
    tensors = kept(edit.save(tmp_path / "e"))
    assert tensors["thin/indices"].dtype == torch.int32
    assert tensors["thin/indices"].tolist() == thin.indices.tolist()
    flags = np.unpackbits(tensors["thick/mask"].numpy(), bitorder="little")
    assert np.flatnonzero(flags).tolist() == thick.indices.tolist()
    assert edit.bytes() == sum(t.numel() * t.element_size() for t in tensors.values())
    assert edit.bytes() == 29 * 8 + 125 + 31 * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values(tmp_path, dtype):
    start = torch.randn(4, 2)
    edit = Edit({
        "sparse": sparse(10, 1000), "dense": Dense(torch.randn(3)),
        "head": Replace(torch.full((2,), 1.0000001)),
        "lora": LowRank(torch.randn(4, 2), torch.randn(2, 3)),
        "from_start": LowRank(start, torch.randn(2, 3), start, torch.randn(2, 3)),
    })
    path = edit.save(tmp_path / "e", dtype=dtype)
    tensors = kept(path)
    assert tensors["sparse/values"].dtype == tensors["lora/B"].dtype == dtype
    assert tensors["head/values"].dtype == tensors["from_start/B"].dtype == torch.float32
    again = Edit.load(path).changes
    assert again["sparse"].values.dtype == torch.float32
    values = edit.changes["sparse"].values
    assert torch.equal(again["sparse"].values, values.to(dtype).float())
    assert torch.equal(again["sparse"].indices, edit.changes["sparse"].indices)


def test_overflow_in_half_precision_is_named(tmp_path):
    edit = Edit({"layer.weight": Dense(torch.tensor([1e5]))})
    with pytest.raises(DataError, match=r"layer\.weight: values up to 1e\+05 overflow"):
        edit.save(tmp_path / "e", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_exactly_k_on_disk(tmp_path):
    change = Sparse(torch.tensor([1, 5, 7]), torch.tensor([0.0, 2.0, 0.0]), (100, 10))
    again = Edit.load(Edit({"w": change}).save(tmp_path / "e")).changes["w"]
    assert again.indices.tolist() == [1, 5, 7]
    assert again.values.tolist() == [0.0, 2.0, 0.0]


def test_empty_edits_and_factors_that_share_memory(tmp_path):
    factor = torch.randn(2, 4)
    edit = Edit({
        "none": Sparse(torch.tensor([], dtype=torch.int64), torch.tensor([]), (4,)),
        "one": LowRank(torch.ones(3, 2), factor), "two": LowRank(torch.zeros(3, 2), factor),
    })
    again = Edit.load(edit.save(tmp_path / "e"))
    assert all(again.changes[n].same(change) for n, change in edit.changes.items())
    assert Edit.load(Edit({}).save(tmp_path / "empty")).changes == {}


def test_masks_are_bits(tmp_path):
    edit = Edit({"w": Masked(torch.rand(16, 16) < 0.5)})
    path = edit.save(tmp_path / "e")
    assert kept(path)["w/mask"].numel() == 32
    assert torch.equal(Edit.load(path).changes["w"].mask, edit.changes["w"].mask)


def test_a_file_for_another_base_is_refused(tmp_path):
    model = Everything()
    edit = Edit(random_changes(model, KINDS, 1), fingerprint(model))
    loaded = Edit.load(edit.save(tmp_path / "e"))
    other = Everything(seed=1)
    with pytest.raises(CheckpointError, match="differ") as caught:
        loaded.apply(other)
    assert str(loaded.base)[:16] not in str(fingerprint(other))
    assert "this is" in caught.value.what
    loaded.apply(model)


# ---- damaged files -------------------------------------------------------------------------


def header(**changed):
    facts = {"changes": {}, "base": None, "about": {}}
    return {"passband": "edit", "format": "1", "edit": json.dumps(facts)} | changed


@pytest.mark.parametrize(
    ("tensors", "meta", "text"),
    [
        ({"w": torch.ones(1)}, {}, "no edit"),
        ({}, header(format="9"), "format 9"),
        ({}, header(edit="{"), "header is damaged"),
        ({}, header(edit="[]"), "header is damaged"),
        ({"w/values": torch.ones(1)}, header(), "no change speaks of"),
        ({}, header(edit='{"changes": {"w": {"kind": "dense"}}, "base": null, "about": {}}'),
         "lacks 'values'"),
        ({}, header(edit='{"changes": {"w": {"kind": "fancy"}}, "base": null, "about": {}}'),
         "fancy"),
        ({"w/values": torch.tensor([math.nan])},
         header(edit='{"changes": {"w": {"kind": "dense"}}, "base": null, "about": {}}'),
         "w.values"),
        ({}, header(edit='{"changes": {}, "base": {"sha256": "0", "tensors": {}}, "about": {}}'),
         "damaged fingerprint"),
        ({}, header(edit='{"changes": {}, "base": {"sha256": "0"}, "about": {}}'), "damaged"),
        ({}, header(edit='{"changes": [], "base": null, "about": {}}'), "damaged"),
    ],
)
def test_what_is_no_edit(tmp_path, tensors, meta, text):
    save_file(tensors, tmp_path / "e", meta)
    with pytest.raises(CheckpointError, match=text):
        Edit.load(tmp_path / "e")


def test_broken_and_missing_files(tmp_path):
    path = Edit({"w": Dense(torch.ones(100))}).save(tmp_path / "e")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="can't be read"):
        Edit.load(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        Edit.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="can't be read"):
        Edit.load(tmp_path)


# ---- composable-sft ------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), shape=st.sampled_from([(7,), (4, 5), (2, 3, 4)]))
def test_composable_sft_against_numpy(seed, shape):
    random = np.random.default_rng(seed)
    dense = random.standard_normal(shape).astype(np.float32)
    dense[random.random(shape) < 0.6] = 0.0
    flat = dense.ravel(order="F")
    index = np.flatnonzero(flat)
    stored = {
        "size": torch.Size(shape), "index_steps": torch.from_numpy(np.diff(index, prepend=0)),
        "values": torch.from_numpy(flat[index]),
    }
    edit = from_composable_sft({"diffs": {"w": stored}, "abs": {"head": torch.ones(2)}})
    assert np.array_equal(edit.changes["w"].delta().numpy(), dense)
    assert edit.changes["head"].kind == "replace"
    assert edit.base is None


def test_composable_sft_counts_beyond_32_bits():
    size = (65536, 65536)
    at = 60000 + 65536 * 40000
    steps = np.array([2**31 - 1, at - (2**31 - 1)], dtype=np.uint32)
    stored = {"size": size, "index_steps": steps, "values": torch.tensor([1.0, 2.0])}
    change = from_composable_sft({"diffs": {"w": stored}}).changes["w"]
    assert divmod(change.indices[int(change.values.argmax())].item(), 65536) == (60000, 40000)


@pytest.mark.parametrize(
    ("loaded", "text"),
    [
        ({"body": {}, "head": {}}, "body"),
        ([], "list"),
        ({"diffs": {"w": {"size": (2,), "values": torch.ones(1)}}}, "w: KeyError"),
        ({"diffs": {"w": {"size": (2,), "index_steps": [3], "values": [1.0]}}}, "w: index 3"),
        ({"diffs": {"w": {"size": (4,), "index_steps": [3, -1], "values": [1.0, 2.0]}}},
         "w: negative"),
        ({"diffs": {"w": {"size": (4,), "index_steps": [1, 1], "values": [1.0]}}}, "w: .*values"),
        ({"diffs": {"w": torch.ones(2)}}, "w: "),
    ],
)
def test_composable_sft_bad_input(loaded, text):
    with pytest.raises(CheckpointError, match=text):
        from_composable_sft(loaded)

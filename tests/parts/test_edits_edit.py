"""Edits on a model: bits restored, sums, refusals, and what the registry knows."""

import copy
import gc
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.weak import TensorWeakRef

from passband.errors import CheckpointError, DataError
from passband.parts.edits import (
    Dense,
    Edit,
    LowRank,
    Masked,
    Replace,
    Sparse,
    compose,
    composed,
    edited,
    fingerprint,
    merge,
    settle,
)
from passband.parts.edits.registry import _STACKS
from tests.parts.edits_models import (
    ADDITIVE,
    KINDS,
    Everything,
    copy_of,
    equal_bits,
    random_changes,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
seeds = st.integers(0, 10_000)


def shift(value=1.0):
    return Edit({"bias": Dense(torch.full((2,), value))})


def additive_edit(model, seed):
    return Edit(random_changes(model, ADDITIVE, seed), fingerprint(model))


# ---- apply and revert ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds, scale=st.sampled_from([1.0, 0.6, -1.3]))
@settings(max_examples=15)
def test_revert_restores_the_bits(dtype, seed, scale):
    model = Everything(dtype)
    before = copy_of(model)
    applied = Edit(random_changes(model, KINDS, seed), fingerprint(model)).apply(model, scale)
    assert not equal_bits(model, before)
    assert edited(model)
    applied.revert()
    assert equal_bits(model, before)
    assert not edited(model)


@given(seed=seeds, dtype=st.sampled_from(DTYPES), order=st.permutations([0, 1, 2]))
@settings(max_examples=30)
def test_stacked_edits_revert_in_any_order(seed, dtype, order):
    model = Everything(dtype)
    edits = [additive_edit(model, seed + i) for i in range(3)]
    before = copy_of(model)
    applied = [edit.apply(model) for edit in edits]
    left = [0, 1, 2]
    for i in order:
        applied[i].revert()
        left.remove(i)
        fresh = Everything(dtype)  # what the remaining ones give on the untouched model
        for j in left:
            edits[j].apply(fresh)
        assert equal_bits(model, copy_of(fresh))
    assert equal_bits(model, before)


@given(seed=seeds, weights=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
@settings(max_examples=30)
def test_composing_commutes_and_equals_the_sum(seed, weights):
    model = Everything()
    a, b = additive_edit(model, seed), additive_edit(model, seed + 11)
    before = copy_of(model)
    ab, ba = compose([a, b], weights), compose([b, a], weights[::-1])
    with composed(model, [a, b], weights):
        now = copy_of(model)
    assert equal_bits(model, before)
    for name, weight in before.items():
        both = weights[0] * a.changes[name].delta() + weights[1] * b.changes[name].delta()
        torch.testing.assert_close(now[name], weight + both, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            ab.changes[name].delta(), ba.changes[name].delta(), rtol=1e-4, atol=1e-4
        )


def test_the_sum_is_rounded_once():
    model = nn.Linear(2, 2, dtype=torch.bfloat16)
    with torch.no_grad():
        model.bias.fill_(1.0)
    small = Edit({"bias": Dense(torch.full((2,), 2.0**-8))})
    with small.apply(model) as applied:
        assert applied.lost == 1.0  # half of the spacing above 1: rounded back
        assert applied.losses == {"bias": 1.0}
    with composed(model, [small, small]) as applied:
        assert applied.lost == 0.0
        assert model.bias.tolist() == [1.0 + 2.0**-7] * 2


def test_tied_weights_change_once():
    model = Everything()
    assert model.out.weight is model.embed.weight
    at = Sparse(torch.tensor([3]), torch.tensor([2.0]), (7, 4))
    before = model.out.weight[0, 3].item()
    Edit({"embed.weight": at}).apply(model)
    assert model.out.weight[0, 3].item() == before + 2.0
    with pytest.raises(DataError, match=r"out\.weight is tied to embed\.weight"):
        Edit({"out.weight": at}).apply(model)


def test_new_values_ignore_the_scale():
    model = nn.Linear(2, 2)
    edit = Edit({"weight": Replace(torch.full((2, 2), 3.0)), "bias": Dense(torch.ones(2))})
    with edit.scaled(0.5).apply(model, scale=0.5):
        assert model.weight.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_a_mask_and_what_lies_above_it():
    model = nn.Linear(4, 1)
    before = copy_of(model)
    mask = Edit({"weight": Masked(torch.tensor([[True, False, True, False]]), pattern=(2, 4))})
    add = Edit({"weight": Dense(torch.ones(1, 4))})
    under, above = mask.apply(model), add.apply(model)
    assert model.weight[0, 1].item() == 1.0
    under.revert()
    assert torch.equal(model.weight.detach(), before["weight"] + 1.0)
    above.revert()
    assert equal_bits(model, before)


def test_a_failure_in_the_middle_leaves_the_model_as_it_was():
    model = Everything(torch.float16)
    before = copy_of(model)
    changes = {"norm.bias": Dense(torch.ones(4)), "linear.bias": Dense(torch.full((6,), 1e6))}
    with pytest.raises(DataError, match=r"linear\.bias: a dense change gives NaN or infinity"):
        Edit(changes).apply(model)
    assert equal_bits(model, before)
    assert not edited(model)


# ---- the registry --------------------------------------------------------------------------


def test_twice_and_not_applied():
    model = nn.Linear(2, 2)
    edit = shift()
    applied = edit.apply(model)
    again = Edit(edit.changes)  # equal in numbers, another object
    for same in (edit, again):
        with pytest.raises(DataError, match="applied to the model already"):
            same.apply(model)
    shift(2.0).apply(model)
    applied.revert()
    with pytest.raises(DataError, match="not applied"):
        applied.revert()
    edit.apply(model)


def test_new_values_for_a_tensor_that_others_change():
    model = nn.Linear(2, 2)
    head = Edit({"bias": Replace(torch.zeros(2)), "weight": Dense(torch.ones(2, 2))})
    other = Edit({"bias": Replace(torch.ones(2))})
    head.apply(model)
    with pytest.raises(DataError, match="new values for bias"):
        other.apply(model)
    with pytest.raises(DataError, match="bias: a replace and a replace"):
        compose([head, other])
    with pytest.raises(DataError, match="bias: a replace and a dense"):
        head + shift()


def test_training_in_between():
    model = nn.Linear(2, 2)
    start = model.bias.detach().clone()

    def trained():
        with torch.no_grad():
            model.bias[0] += 0.25

    applied = shift().apply(model)
    trained()
    with pytest.raises(DataError, match="changed since: bias"):
        applied.revert()
    assert model.bias[0].item() == pytest.approx(start[0].item() + 1.25)  # nothing was undone
    applied.revert(trained="keep")
    assert model.bias[0].item() == pytest.approx(start[0].item() + 0.25, abs=1e-6)
    assert torch.equal(model.bias.detach()[1:], start[1:])

    with torch.no_grad():
        model.bias.copy_(start)
    applied = shift().apply(model)
    trained()
    applied.revert(trained="discard")
    assert torch.equal(model.bias.detach(), start)


def test_keeping_what_was_trained_leaves_the_rest_to_the_bit():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.1, 0.3]))
    applied = shift(1e8).apply(model)  # swallows the digits of the bias: subtracting won't do
    with torch.no_grad():
        model.bias[0] = 5.0
    applied.revert(trained="keep")
    assert model.bias[1].item() == torch.tensor(0.3).item()


def test_the_same_bits_written_again_are_no_training():
    model = Everything(torch.bfloat16)
    before = copy_of(model)
    first = additive_edit(model, 1).apply(model)
    additive_edit(model, 2).apply(model)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    first.revert()
    settle(model)
    fresh = Everything(torch.bfloat16)
    additive_edit(fresh, 2).apply(fresh)
    assert equal_bits(model, copy_of(fresh))
    assert not equal_bits(model, before)


def test_training_elsewhere_does_not_matter():
    """A sparse edit minds only the entries that it wrote."""
    model = nn.Linear(2, 2)
    before = copy_of(model)
    one = Edit({"weight": Sparse(torch.tensor([0]), torch.tensor([1.0]), (2, 2))}).apply(model)
    with torch.no_grad():
        model.weight[1, 1] = 9.0
    one.revert()
    assert model.weight[1, 1].item() == 9.0
    assert torch.equal(model.weight[0], before["weight"][0])


def test_keep_under_another_edit_is_refused():
    model = nn.Linear(2, 2)
    under = shift().apply(model)
    shift(2.0).apply(model)
    with torch.no_grad():
        model.bias += 1.0
    with pytest.raises(DataError, match="other edits lie on bias"):
        under.revert(trained="keep")


def test_casts_and_replaced_tensors():
    model = nn.Linear(2, 2)
    applied = shift().apply(model)
    model.to(torch.bfloat16)
    with pytest.raises(DataError, match="were cast"):
        applied.revert()
    model = nn.Linear(2, 2)
    applied = shift().apply(model)
    model.bias = nn.Parameter(torch.zeros(2))
    gc.collect()
    with pytest.raises(DataError, match="not applied to bias"):
        applied.revert()


def test_settled_changes_are_the_base():
    model = nn.Linear(2, 2)
    pristine = fingerprint(model)
    applied = shift().apply(model)
    assert fingerprint(model) == pristine
    settle(model)
    assert fingerprint(model) != pristine
    assert edited(model) == []
    with pytest.raises(DataError, match="settled"):
        applied.revert()


def test_nothing_is_kept_of_a_model_that_is_gone():
    model = nn.Linear(2, 2)
    reference = TensorWeakRef(model.bias)
    applied = shift().apply(model)
    held = len(_STACKS)
    del model
    gc.collect()
    assert reference() is None
    assert len(_STACKS) == held - 1
    assert applied.active


# ---- bases ---------------------------------------------------------------------------------


def test_another_base_is_refused():
    model = Everything()
    edit = Edit(random_changes(model, ADDITIVE, 0), fingerprint(model))
    other = Everything()
    with torch.no_grad():
        other.conv.bias += 1.0
    before = copy_of(other)
    with pytest.raises(CheckpointError, match=r"1 differ: conv\.bias") as caught:
        edit.apply(other)
    assert edit.base.sha256[:16] in caught.value.what
    assert fingerprint(other).sha256[:16] in caught.value.what
    assert equal_bits(other, before)
    edit.apply(other, check=False)
    with pytest.raises(CheckpointError, match="10 differ"):  # every tensor has another dtype
        edit.apply(Everything(torch.float16))


def test_an_applied_edit_does_not_hide_the_base():
    model = Everything()
    first, second = additive_edit(model, 3), additive_edit(model, 4)
    first.apply(model)
    second.apply(model)
    assert fingerprint(model) == first.base


def test_dtype_and_shape_are_part_of_a_fingerprint():
    zeros = [torch.zeros(4).half(), torch.zeros(4).bfloat16(), torch.zeros(2, 2).half()]
    assert len({fingerprint({"w": w}).sha256 for w in zeros}) == 3  # all eight zero bytes
    kernel = torch.randn(2, 3, 4, 4)
    same = kernel.to(memory_format=torch.channels_last)
    assert fingerprint({"w": kernel}) == fingerprint({"w": same})


def test_a_fresh_head_is_no_part_of_the_base():
    model = Everything()
    base = fingerprint(model, without=["conv.weight", "conv.bias"])
    edit = Edit({"conv.bias": Replace(torch.zeros(3)), "norm.bias": Dense(torch.ones(4))}, base)
    other = Everything()
    with torch.no_grad():
        other.conv.bias += 5.0
        other.conv.weight += 5.0
    with edit.apply(other):
        assert other.conv.bias.tolist() == [0.0, 0.0, 0.0]


class Named(nn.Module):
    """The same encoder under another name, with another head."""

    def __init__(self, name, outputs):
        super().__init__()
        self.add_module(name, nn.Linear(3, 3))
        self.head = nn.Linear(3, outputs)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in getattr(self, name).parameters():
                parameter.copy_(torch.randn(parameter.shape))


def test_an_encoder_edit_moves_to_another_model():
    lm, tagger = Named("bert", 20), Named("roberta", 4)
    language = Edit(
        {n: Dense(torch.ones(p.shape)) for n, p in lm.named_parameters()}, fingerprint(lm)
    )
    with pytest.raises(DataError, match=r"lacks 2 of 4 tensors: bert\.weight") as caught:
        language.apply(tagger)
    encoder = language.only(lambda name: name.startswith("bert."))
    with pytest.raises(DataError) as caught:
        encoder.apply(tagger)
    assert caught.value.mend == "edit.renamed({'bert.': 'roberta.'})"
    before = copy_of(tagger)
    with encoder.renamed({"bert.": "roberta."}).apply(tagger):
        assert torch.equal(tagger.roberta.bias.detach(), before["roberta.bias"] + 1.0)
        assert torch.equal(tagger.head.bias.detach(), before["head.bias"])
    with pytest.raises(DataError, match=r"no changed tensor begins with 'roberta\.'"):
        encoder.renamed({"roberta.": "x."})
    with pytest.raises(DataError, match="more than once"):
        language.renamed({"bert.": "head."})


def test_resized_tensors_are_named():
    with pytest.raises(DataError, match=r"bias \(3,\) \(edit: \(2,\)\)"):
        shift().apply(nn.Linear(2, 3))


def test_edits_of_different_bases_have_no_sum():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    edits = [Edit({"bias": Dense(torch.ones(2))}, fingerprint(m)) for m in (one, two)]
    with pytest.raises(CheckpointError, match="differ in bias, weight"):
        edits[0] + edits[1]
    part = edits[0].only(lambda n: n == "bias")
    assert (part + edits[0]).base == edits[0].base


# ---- the rest of the algebra ---------------------------------------------------------------


def test_nan_is_refused_by_name():
    values = torch.tensor([1.0, float("nan")])
    for change in (Dense(values), Replace(values), Sparse(torch.arange(2), values, (2,))):
        with pytest.raises(DataError, match=r"bias\.values"):
            Edit({"bias": change})
    with pytest.raises(DataError, match=r"weight\.A"):
        Edit({"weight": LowRank(torch.ones(2, 1), torch.full((1, 2), float("inf")))})
    with pytest.raises(DataError, match="about"):
        Edit({}, about={"x": torch.ones(1)})


def test_norm_and_lora():
    edit = Edit({
        "a": Dense(torch.tensor([3.0])), "b": Sparse(torch.tensor([1]), torch.tensor([4.0]), (2,)),
        "head": Replace(torch.ones(2)), "w": LowRank(torch.zeros(2, 1), torch.ones(1, 2)),
    })
    assert edit.norm() == pytest.approx(5.0)
    assert list(edit.lora()) == ["w"]
    assert edit.bytes() == 4 + (1 + 4) + 8 + 16  # b: one of two entries, as a bit mask


def test_merge():
    model = Everything()
    edit = additive_edit(model, 5)
    before = copy_of(model)
    state = merge(model, [edit], weights=[0.5])
    assert equal_bits(model, before)
    assert state["out.weight"] is state["embed.weight"]  # still tied
    from_state = merge(model.state_dict(), [edit], weights=[0.5])
    with edit.apply(model, scale=0.5):
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(state[name], weight)
            assert torch.equal(from_state[name], state[name])
        with pytest.raises(DataError, match="edits are applied"):
            merge(model, [edit])
    other = Everything(seed=1)
    with pytest.raises(CheckpointError, match="differ"):
        merge(other.state_dict(), [edit])


@pytest.mark.parametrize("dtype", DTYPES)
def test_between(dtype):
    before, after = Everything(dtype), Everything(dtype)
    with torch.no_grad():
        after.linear.weight *= 1.5
        after.norm.bias += 0.5
    edit = Edit.between(before, after)
    assert sorted(edit.changes) == ["linear.weight", "norm.bias"]
    with edit.apply(before):
        assert all(torch.equal(a, b) for a, b in zip(
            before.parameters(), after.parameters(), strict=True
        ))
    named = Edit.between(before.state_dict(), after.state_dict(), names=["conv.bias"])
    assert named.norm() == 0.0
    head = Edit.between({"w": torch.ones(1)}, {"w": torch.ones(1), "head": torch.ones(2)})
    assert {n: c.kind for n, c in head.changes.items()} == {"head": "replace"}
    with pytest.raises(DataError, match="lacks w"):
        Edit.between({"w": torch.ones(1)}, {})


def test_weights_of_a_sum():
    with pytest.raises(DataError, match="2 edits and 1 weights"):
        compose([shift(), shift()], [1.0])
    with pytest.raises(DataError, match="at least one"):
        compose([])
    total = compose([shift(), shift(2.0)], [0.6, 0.6])
    assert total.changes["bias"].values.tolist() == pytest.approx([1.8, 1.8])
    assert total.about == {"composed": [{}, {}], "weights": [0.6, 0.6]}


def test_every_order_of_every_kind_has_a_sum():
    model = Everything()
    for first, second in itertools.product(range(4), range(4)):
        a = Edit(random_changes(model, (ADDITIVE[first],), 1))
        b = Edit(random_changes(model, (ADDITIVE[second],), 2))
        with composed(model, [a, b]):
            assert edited(model)

"""NF4 against the closed-form codebook, brute force, and dense layers with dense gradients."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from passband.errors import CheckpointError, ConfigError, DataError, PassbandWarning
from passband.parts.edits import Edit, Sparse, fingerprint
from passband.parts.nf4 import (
    NF4Selected,
    codebook,
    fingerprint_of_packed,
    merge_packed,
    pack,
    packed_layers,
    quantise,
    unpack,
)
from passband.parts.sampled_product import is_faster, sampled_product
from passband.parts.tensor_memory import PeakTensors


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 10))


# ---- numbers -------------------------------------------------------------------------------------


def test_the_codes_are_normal_quantiles():
    edge = ((1 - 1 / 32) + (1 - 1 / 30)) / 2
    up = stats.norm.ppf(np.linspace(edge, 0.5, 9)[:-1])
    down = -stats.norm.ppf(np.linspace(edge, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([up, [0.0], down])) / stats.norm.ppf(edge)
    np.testing.assert_allclose(codebook().numpy(), expected, atol=1e-7)
    # The figures printed in appendix E of the QLoRA paper.
    np.testing.assert_allclose(
        codebook().numpy()[[1, 4, 6, 8, 11, 14]],
        [-0.6961928009986877, -0.28444138169288635, -0.09105003625154495, 0.07958029955625534,
         0.33791524171829224, 0.7229568362236023], atol=1e-6,
    )


def test_each_entry_is_the_nearest_code_times_the_scale():
    torch.manual_seed(0)
    w = torch.randn(7, 61)  # no multiple of a block
    w[3] *= 50.0
    packed = quantise(w)
    dense = packed.dequantise().flatten().double().numpy()
    flat, codes = w.flatten().double().numpy(), codebook().double().numpy()
    largest = np.array([abs(flat[i : i + 64]).max() for i in range(0, len(flat), 64)])
    # The scales, rounded to 8 bits about their mean by hand.
    mean = largest.mean()
    coarse = abs(largest - mean).max()
    scales = mean + coarse / 127 * np.round((largest - mean) / coarse * 127)
    for i, value in enumerate(flat):
        scale = scales[i // 64]
        nearest = codes[np.argmin(abs(codes * scale - value))] * scale
        assert dense[i] == pytest.approx(nearest, rel=1e-5, abs=1e-7)


def test_zeros_stay_zero_and_constants_nearly_stay():
    assert torch.equal(quantise(torch.zeros(3, 100)).dequantise(), torch.zeros(3, 100))
    w = torch.randn(64, 64)
    w[5] = 0.0
    assert torch.equal(quantise(w).dequantise()[5], torch.zeros(64))
    constant = torch.full((4, 64), -0.3)
    torch.testing.assert_close(quantise(constant).dequantise(), constant)


def test_bits_an_entry_and_error():
    w = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    packed = quantise(w)
    assert 8 * packed.nbytes / w.numel() == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)
    error = float((packed.dequantise() - w).square().mean().sqrt())
    assert error < 0.11  # of a standard deviation; 16 equal steps give 0.115 and more
    steps = (w.view(-1, 64) / w.view(-1, 64).abs().amax(1, keepdim=True) * 7.5 - 0.5).round() + 0.5
    uniform = (steps / 7.5 * w.view(-1, 64).abs().amax(1, keepdim=True)).view_as(w)
    assert error < float((uniform - w).square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_come_back(dtype):
    assert quantise(torch.randn(8, 8, dtype=dtype)).dequantise().dtype == dtype


def test_bad_tensors_are_refused():
    with pytest.raises(DataError, match="int8"):
        quantise(torch.zeros(4, dtype=torch.int8))
    with pytest.raises(DataError, match="NaN"):
        quantise(torch.tensor([1.0, float("nan")]))


# ---- layers --------------------------------------------------------------------------------------


def pairs():
    """A packed model, and a dense one with the same rounded weights."""
    packed = network()
    names = pack(packed, ["0", "2"])
    dense = unpack(copy.deepcopy(packed)).requires_grad_(True)
    return packed, dense, names


def test_a_packed_model_computes_like_its_dense_twin():
    packed, dense, names = pairs()
    x = torch.randn(5, 3, 24)
    assert names == ["0.weight", "2.weight"]
    torch.testing.assert_close(packed(x), dense(x))
    assert packed[0].weight.dtype == torch.uint8
    held = sum(t.numel() * t.element_size() for t in packed.state_dict().values())
    assert held < sum(p.numel() * 4 for p in dense.parameters()) / 3


def test_gradients_are_those_of_dense_training():
    packed, dense, names = pairs()
    indices = {"0.weight": torch.tensor([700, 3, 41]), "2.weight": torch.tensor([0, 399])}
    seen = {}
    selected = NF4Selected(
        packed, indices, on_gradient=lambda name, g: seen.__setitem__(name, g.clone())
    )
    with torch.no_grad():
        for name, values in selected.values.items():
            values.copy_(torch.randn_like(values))
            dense.get_parameter(name).view(-1)[selected.indices[name]] += values
    x = torch.randn(6, 24)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    for model, inputs in ((packed, x1), (dense, x2)):
        model(inputs).square().sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad)
    torch.testing.assert_close(packed[0].bias.grad, dense[0].bias.grad)
    for name in names:
        grad = dense.get_parameter(name).grad
        torch.testing.assert_close(seen[name], grad)
        torch.testing.assert_close(
            selected.values[name].grad, grad.flatten()[selected.indices[name]]
        )
        assert packed.get_parameter(name).grad is None


def test_sampled_gradients_are_the_same_and_call_no_hook():
    packed, _, _ = pairs()
    indices = {"0.weight": torch.tensor([700, 3, 41])}
    whole = NF4Selected(packed, indices)
    x = torch.randn(6, 24)
    packed(x).square().sum().backward()
    expected = whole.values["0.weight"].grad
    whole.detach()

    def refuse(*_):
        raise AssertionError("a dense gradient was made")

    some = NF4Selected(packed, indices, on_gradient=refuse, sampled=lambda _: True)
    packed(x).square().sum().backward()
    torch.testing.assert_close(some.values["0.weight"].grad, expected)


def test_a_sampled_product_in_chunks():
    left, right = torch.randn(1 << 12, 9), torch.randn(1 << 12, 11)
    at = torch.randint(0, 99, (3000,))
    torch.testing.assert_close(
        sampled_product(left, right, at // 11, at % 11), (left.T @ right).flatten()[at],
        rtol=1e-3, atol=1e-3,
    )
    assert not is_faster((64, 64), 1)


def test_nothing_dense_is_kept():
    model = nn.Sequential(*[nn.Linear(96, 96) for _ in range(6)])
    dense = 96 * 96
    pack(model, [str(i) for i in range(6)])
    selected = NF4Selected(model, {f"{i}.weight": torch.arange(20) for i in range(6)})
    saved = []
    x = torch.randn(4, 96)

    def note(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = model(x)
    assert max(saved) < dense
    out.sum().backward()
    del out
    with PeakTensors() as memory:
        model(x).sum().backward()
    # The dense weight of one layer and what makes it (bytes as int32, pairs), not of six layers.
    assert memory.peak < 4.5 * 4 * dense
    assert memory.alive < dense
    assert len(selected.values) == 6


def test_off_is_the_packed_model_and_conv1d_works():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    model = nn.Sequential(pytorch_utils.Conv1D(8, 24))
    pack(model, ["0"])
    twin = unpack(copy.deepcopy(model))
    x = torch.randn(5, 24)
    start = model(x)
    torch.testing.assert_close(start, twin(x))
    selected = NF4Selected(model, {"0.weight": torch.tensor([9])})
    with torch.no_grad():
        selected.values["0.weight"].fill_(2.0)
        twin[0].weight.view(-1)[9] += 2.0
    torch.testing.assert_close(model(x), twin(x))
    with selected.off():
        assert torch.equal(model(x), start)
    twin.requires_grad_(True)
    for m in (model, twin):
        m(x).square().sum().backward()
    expected = twin[0].weight.grad.flatten()[9]
    torch.testing.assert_close(selected.values["0.weight"].grad, expected[None])


def test_autocast_and_half_precision():
    packed, dense, _ = pairs()
    x = torch.randn(5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
        torch.testing.assert_close(packed(x), dense(x), rtol=0.05, atol=0.05)


# ---- merging -------------------------------------------------------------------------------------


def change() -> Edit:
    return Edit({"0.weight": Sparse(torch.tensor([7, 500]), torch.tensor([0.5, -0.25]), (40, 24))})


def test_merging_packs_again_and_says_what_is_lost():
    packed, dense, _ = pairs()
    wanted = dense[0].weight.detach().clone()
    wanted.view(-1)[[7, 500]] += torch.tensor([0.5, -0.25])
    with pytest.warns(PassbandWarning, match="loses"):
        lost = merge_packed(packed, change())
    found = unpack(packed)[0].weight
    torch.testing.assert_close(found, quantise(wanted).dequantise())
    expected = float((found - wanted).norm()) / math.hypot(0.5, 0.25)
    assert lost == pytest.approx(expected, rel=1e-4)


def test_unpacked_the_edit_applies_exactly():
    packed, dense, _ = pairs()
    base = fingerprint_of_packed(packed)
    assert base == fingerprint(dense)
    edit = Edit(change().changes, base)
    edit.apply(unpack(packed))
    first = dense[0].weight.detach().view(-1)[7]
    torch.testing.assert_close(packed[0].weight.detach().view(-1)[7], first + 0.5)
    with pytest.raises(CheckpointError):
        edit.apply(network())


# ---- bad input -----------------------------------------------------------------------------------


def test_bad_selections_are_refused():
    packed, _, _ = pairs()
    for indices in ([], [0, 0], [960], [-1]):
        with pytest.raises(DataError):
            NF4Selected(packed, {"0.weight": torch.tensor(indices, dtype=torch.int64)})
    selected = NF4Selected(packed, {"0.weight": torch.tensor([1, 2])})
    with pytest.raises(DataError, match="already"):
        NF4Selected(packed, {"0.weight": torch.tensor([1])})
    with pytest.raises(DataError, match="other slots"):
        selected.change_slots("0.weight", torch.tensor([0]), torch.tensor([2]))
    selected.change_slots("0.weight", torch.tensor([0]), torch.tensor([5]), 1.5)
    assert selected.edit_changes()["0.weight"].indices.tolist() == [2, 5]
    with pytest.raises(CheckpointError):
        selected.load_state_dict({})
    with pytest.raises(ConfigError):
        selected.detach(restore=False)
    with pytest.raises(DataError, match="without a method"):
        unpack(packed)
    selected.detach()
    assert set(packed_layers(packed)) == {"0.weight", "2.weight"}
    with pytest.raises(DataError):
        pack(packed, ["0"])
    tied = nn.ModuleDict({"a": nn.Embedding(5, 4), "b": nn.Linear(4, 5, bias=False)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(DataError, match="shared"):
        pack(tied, ["b"])

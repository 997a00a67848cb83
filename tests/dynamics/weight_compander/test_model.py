"""The parametrization: numbers of the closed form, gradients, wrapping and unwrapping."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from passband.dynamics.networks import build
from passband.dynamics.weight_compander.curves import CURVES, companded
from passband.dynamics.weight_compander.model import (
    Compander,
    cached,
    check_optimizer,
    compand,
    companders,
    decay_penalty,
    export_plain_state_dict,
    parameter_groups,
    uncompand,
)
from passband.errors import ConfigError, DataError, PassbandError, PassbandWarning

# a = 0.5, b = 0.25, computed by hand with a calculator of 10 digits.
V = [-2.0, -0.1, 0.0, 0.05, 0.3, 5.0]
W = [-0.72322067, -0.19025319, 0.0, 0.09869778, 0.43802903, 0.76041897]
SLOPES = [0.03076923, 1.72413793, 2.0, 1.92307692, 0.81967213, 0.00498753]


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def everywhere(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


# ---- the curve ---------------------------------------------------------------------------------


def test_the_fixture() -> None:
    psi = Compander(a=0.5, b=0.25)
    v = torch.tensor(V, dtype=torch.float64, requires_grad=True)
    w = psi(v)
    w.sum().backward()
    torch.testing.assert_close(w.detach(), torch.tensor(W, dtype=torch.float64), atol=2e-8, rtol=0)
    torch.testing.assert_close(v.grad, torch.tensor(SLOPES, dtype=torch.float64), atol=2e-7, rtol=0)
    assert float(psi.bound) == pytest.approx(0.78539816, abs=1e-7)
    torch.testing.assert_close(psi.right_inverse(w.detach()[:5]), v.detach()[:5])


@pytest.mark.parametrize("ratio, zero", [(1.2, 0.835), (1.5, 1.451), (2.0, 2.331), (4.0, 5.573)])
def test_weights_below_are_enlarged_and_above_shrunk(ratio: float, zero: float) -> None:
    psi = Compander(a=ratio, b=1.0)
    below, above = psi(torch.tensor([zero - 0.01, zero + 0.01]))
    assert below > zero - 0.01
    assert above < zero + 0.01


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_gradients_of_first_and_second_order(curve: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    v = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    a = (0.5 + torch.rand(shape, dtype=torch.float64)).requires_grad_()
    b = (0.2 + torch.rand(shape, dtype=torch.float64)).requires_grad_()

    def f(v, a, b):
        return companded(v, a, b, curve)

    assert torch.autograd.gradcheck(f, (v, a, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, (v, a, b))


@pytest.mark.parametrize("curve", CURVES)
def test_odd_increasing_of_slope_one_and_invertible(curve: str) -> None:
    psi = Compander(a=0.7, b=0.7, curve=curve)
    v = torch.linspace(-1.2, 1.2, 601, dtype=torch.float64)
    w = psi(v)
    torch.testing.assert_close(w, -w.flip(0), atol=1e-12, rtol=0)
    assert (w.diff() > 0).all()
    assert (w.abs() <= psi.bound).all()
    assert float(psi(torch.tensor([1e-6], dtype=torch.float64))) == pytest.approx(1e-6, rel=1e-5)
    torch.testing.assert_close(psi.right_inverse(w), v, atol=1e-6, rtol=1e-6)


def test_it_is_the_plain_formula_in_eager_torch() -> None:
    v = torch.randn(40, 30, requires_grad=True)
    psi = Compander(a=0.3, b=0.2, learn=True)
    g = torch.randn(40, 30)
    ours = torch.autograd.grad((psi(v) * g).sum(), [v, psi.log_a, psi.log_b])
    plain = psi.log_a.exp() * torch.atan(v / psi.log_b.exp())
    theirs = torch.autograd.grad((plain * g).sum(), [v, psi.log_a, psi.log_b])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    v = torch.randn(50).to(dtype)
    found = Compander(a=0.3, b=0.2)(v)
    assert found.dtype == dtype
    assert torch.equal(found, (0.3 * torch.atan(v.float() / 0.2)).to(dtype))


def test_vmap_over_networks() -> None:
    psi = Compander(a=0.4, b=0.2)
    v = torch.randn(3, 5)
    found = torch.func.vmap(torch.func.grad(lambda x: psi(x).sum()))(v)
    torch.testing.assert_close(found, 0.4 * 0.2 / (0.04 + v * v))


# ---- wrapping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "channel", "global"])
@pytest.mark.parametrize("curve", CURVES)
def test_matched_weights_leave_outputs_and_unwrapping_is_bit_equal(scope: str, curve: str) -> None:
    model, x = mlp().eval(), everywhere()
    before = model(x)
    names = list(model.state_dict())
    assert compand(model, scope=scope, curve=curve, learn=True) is model
    after = model(x)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    exported = export_plain_state_dict(model)
    uncompand(model)
    assert torch.equal(model(x), after)
    assert list(model.state_dict()) == names
    assert set(exported) == set(names)
    assert all(torch.equal(exported[n], t) for n, t in model.state_dict().items())
    assert type(model[0]) is nn.Linear
    pickle.loads(pickle.dumps(model))


def test_convolutions_of_all_kinds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3))
    x = torch.randn(2, 1, 5, 5)
    before = model(x)
    compand(model, scope="channel", learn=True)
    assert companders(model)["0"].log_a.shape == (4, 1, 1, 1)
    assert companders(model)["2"].log_a.shape == (1, 6, 1, 1)
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=0)


def test_raw_starts_at_the_curve_of_the_weights() -> None:
    layer = nn.Linear(5, 4)
    w = layer.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compand(layer, a=0.1, b=0.05, init="raw")
    torch.testing.assert_close(layer.weight, 0.1 * torch.atan(w / 0.05))
    assert torch.equal(layer.parametrizations.weight.original, w)
    layer.weight = torch.full((4, 5), 0.07)  # setting weights later inverts, as ever
    torch.testing.assert_close(layer.weight, torch.full((4, 5), 0.07))


def test_two_numbers_a_layer_are_added() -> None:
    model = build("mlp", (1, 8, 8), 10, hidden=(256, 256))
    count = sum(p.numel() for p in model.parameters())
    assert count == 85_002
    assert sum(p.numel() for p in compand(model, learn=True).parameters()) == count + 6
    fixed = compand(build("mlp", (1, 8, 8), 10, hidden=(256, 256)))
    assert sum(p.numel() for p in fixed.parameters()) == count


def test_one_pair_for_all() -> None:
    model = compand(mlp(), scope="global", learn=True)
    assert companders(model)["0"] is companders(model)["3"]
    assert [n for n, _ in model.named_parameters() if "log_" in n] == [
        "0.parametrizations.weight.0.log_a", "0.parametrizations.weight.0.log_b",
    ]


def test_layers_are_chosen() -> None:
    assert list(companders(compand(mlp(), first=False))) == ["3"]
    assert list(companders(compand(mlp(), exclude=["3"]))) == ["0"]
    assert list(companders(compand(mlp(), include=["0"]))) == ["0"]
    table = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    assert list(companders(compand(table))) == ["1"]
    uncompand(table)
    assert list(companders(compand(table, embeddings=True))) == ["0", "1"]


@pytest.mark.filterwarnings("error")
def test_tied_weights_share_the_parametrization() -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
    head.weight = table.weight
    model = nn.Sequential(table, head)
    x = torch.randint(7, (4,))
    before = model(x)
    compand(model, embeddings=True, learn=True)
    assert len(list(model.parameters())) == 3
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        table.parametrizations.weight.original.mul_(2.0)
    assert torch.equal(table.weight, head.weight)
    groups = parameter_groups(model, 0.1, 1e-3)
    assert [len(g["params"]) for g in groups] == [1, 2]
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    expected = model(x)
    assert torch.equal(again(x), expected)
    uncompand(model)
    assert table.weight is head.weight
    assert torch.equal(model(x), expected)


def test_it_goes_on_top_of_an_older_parametrization() -> None:
    layer = nn.Linear(5, 4)
    w, x = layer.weight.detach().clone(), torch.randn(3, 5)
    weight_norm(layer)
    before = layer(x)
    compand(layer)
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.weight, w, atol=1e-6, rtol=1e-5)
    after = layer(x)
    assert torch.equal(uncompand(layer)(x), after)


class Doubled(nn.Module):
    """A parametrization that can't be set to given weights."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return 2 * w


def test_an_older_parametrization_without_an_inverse_needs_a_raw_start() -> None:
    layer = nn.Linear(5, 4)
    parametrize.register_parametrization(layer, "weight", Doubled())
    with pytest.raises(ConfigError, match="without an inverse"):
        compand(copy.deepcopy(layer))
    w = layer.weight.detach().clone()
    compand(layer, a=0.3, b=0.2, init="raw")
    torch.testing.assert_close(layer.weight, 0.3 * torch.atan(w / 0.2))


# ---- the same network elsewhere ------------------------------------------------------------------


def test_copies_and_state_dicts() -> None:
    model, x = compand(mlp(), learn=True).eval(), everywhere()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    other = compand(mlp(seed=5), learn=True, slope=3.0).eval()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    expected = model(x)
    uncompand(twin)  # torch keeps the property `weight` in a class that copies share
    assert torch.equal(model(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(uncompand(copy.deepcopy(model))(x), expected)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert torch.equal(average(x), model(x))


def test_export() -> None:
    model, x = compand(mlp(), learn=True).eval(), everywhere()
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


def test_compile_traces_the_whole_step_without_a_break() -> None:
    model, x = compand(mlp(), learn=True).eval(), everywhere()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    # The backend "aot_eager" traces forward and backward as the compiler does, and needs none.
    fast = torch.compile(loss, fullgraph=True, backend="aot_eager")
    wanted = list(model.parameters())
    ours = torch.autograd.grad(loss(x), wanted)
    theirs = torch.autograd.grad(fast(x), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_cached_weights_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = compand(nn.Linear(4, 4)), []
    monkeypatch.setattr(
        Compander, "forward", lambda self, v: (calls.append(1), torch.atan(v))[1]
    )
    with cached():
        x = torch.randn(2, 4)
        for _ in range(5):
            x = model(x)
    assert len(calls) == 1
    x.sum().backward()


# ---- training ----------------------------------------------------------------------------------


def test_the_step_is_that_of_an_implicit_rate() -> None:
    """To first order a step in v moves w by -lr psi'^2 dL/dw."""
    layer = nn.Linear(6, 4, bias=False).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    plain_gradient = torch.autograd.grad(layer(x).square().mean(), layer.weight)[0]
    compand(layer, a=0.6, b=0.3)
    v = layer.parametrizations.weight.original.detach().clone()
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6)
    layer(x).square().mean().backward()
    optimizer.step()
    slope = 0.6 * 0.3 / (0.09 + v * v)
    moved = layer.weight.detach() - before
    torch.testing.assert_close(moved, -1e-6 * slope**2 * plain_gradient, atol=1e-11, rtol=1e-3)


def test_groups_keep_decay_off_the_scales() -> None:
    model = compand(mlp(), learn=True, slope=2.0)
    weights, rest, scales = parameter_groups(model, 0.2, 1e-3)
    assert [len(g["params"]) for g in (weights, rest, scales)] == [2, 4, 4]
    assert [g["weight_decay"] for g in (weights, rest, scales)] == [1e-3, 1e-3, 0]
    assert scales["lr"] == pytest.approx(0.02)
    steady = parameter_groups(model, 0.2, 1e-3, steady=True, decay_on="w")
    assert steady[0]["lr"] == pytest.approx(0.2 / 4)
    assert steady[0]["weight_decay"] == 0
    check_optimizer(model, torch.optim.SGD(parameter_groups(model, 0.1, 1e-3), momentum=0.9))


def test_decay_on_the_weights_as_used() -> None:
    layer = compand(nn.Linear(4, 3).double())
    penalty = decay_penalty(layer, 0.3)
    v = layer.parametrizations.weight.original
    psi = companders(layer)[""]
    slope = psi.a * psi.b / (psi.b**2 + v.detach() ** 2)
    torch.testing.assert_close(
        torch.autograd.grad(penalty, v)[0], 0.3 * layer.weight.detach() * slope,
        atol=1e-6, rtol=1e-5,
    )


def test_a_stale_optimiser_is_found() -> None:
    model = mlp()
    stale = torch.optim.SGD(model.parameters(), lr=0.1)
    check_optimizer(compand(model), stale)  # torch keeps the tensors themselves
    uncompand(model)
    compand(model, learn=True)
    with pytest.raises(ConfigError, match="lacks 4 parameters"):
        check_optimizer(model, stale)
    two = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ConfigError, match="1 tensors that are not"):
        check_optimizer(model, two)
    decaying = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    with pytest.raises(ConfigError, match="weight decay on"):
        check_optimizer(model, decaying)
    weight_norm(other := nn.Linear(3, 2))
    before = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="lacks"):
        check_optimizer(compand(other), before)


# ---- input that is wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("values", [
    {"a": 0.0}, {"b": -1.0}, {"slope": 0.0}, {"bound": math.nan}, {"a": math.inf},
    {"scope": "each"}, {"init": "best"}, {"curve": "atan"}, {"clip": 1.0},
])
def test_values_out_of_range(values: dict[str, object]) -> None:
    model = mlp()
    with pytest.raises(PassbandError):
        compand(model, **values)
    assert not companders(model)


def test_weights_beyond_the_bound_are_cut_off_and_counted() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -3.0], [2.0, 0.2]]))
    with pytest.warns(PassbandWarning, match=r"2 of 4 weights .* 0\.95 of the bound 1\.571"):
        compand(layer, a=1.0, b=1.0)
    edge = 0.95 * math.pi / 2
    torch.testing.assert_close(layer.weight, torch.tensor([[0.1, -edge], [edge, 0.2]]))


def test_unwrapping_and_wrapping_again_at_the_edge_is_silent() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    with pytest.warns(PassbandWarning):
        compand(layer, a=1.0, b=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compand(uncompand(layer), a=1.0, b=1.0)


def test_layers_that_cannot_be_wrapped() -> None:
    with pytest.raises(ConfigError, match="no layers"):
        compand(nn.Sequential(nn.ReLU()))
    with pytest.raises(ConfigError, match="no layer matches"):
        compand(mlp(), include=["heads"])
    with pytest.raises(DataError, match="ReLU without a weight"):
        compand(mlp(), include=["2"])
    with pytest.raises(DataError, match="is a gain"):
        compand(mlp(), include=["1"])
    with pytest.raises(DataError, match="no shape yet"):
        compand(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ConfigError, match="companded already"):
        compand(compand(mlp()))
    with pytest.raises(ConfigError, match="no companded weights"):
        decay_penalty(mlp(), 0.1)


def test_broken_and_quantised_weights() -> None:
    model = mlp()
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan
    with pytest.raises(DataError, match=r"'3' is a Linear with 1 weights that are not finite"):
        compand(model)
    assert not companders(model)
    layer = compand(nn.Linear(2, 2))
    with pytest.raises(DataError, match="1 weights are NaN"):
        layer.weight = torch.tensor([[0.0, math.nan], [0.0, 0.0]])
    bytes_ = nn.Linear(2, 2)
    bytes_.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DataError, match="quantised"):
        compand(bytes_)

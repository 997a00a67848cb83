"""Low-rank adapters: against the dense matrix, autograd of the plain formula, and peft's LoRA."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.low_rank import LowRankFactors, LowRankLinear

conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (2, 5, 12)),
    "linear of rows": (lambda: nn.Linear(12, 8, bias=False), (7, 12)),
    "linear of one vector": (lambda: nn.Linear(12, 8), (12,)),
    "gpt-2": (lambda: conv1d(8, 12), (2, 5, 12)),
    "kernels of 1": (lambda: nn.Conv2d(6, 8, 1), (2, 6, 5, 5)),
    "kernels": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 7, 7)),
    "reflecting": (
        lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect", dilation=1), (2, 6, 7, 7)
    ),
    "groups": (lambda: nn.Conv2d(6, 8, 3, groups=2), (2, 6, 7, 7)),
    "depthwise": (lambda: nn.Conv1d(6, 6, 3, groups=6), (2, 6, 9)),
    "volume": (lambda: nn.Conv3d(2, 8, 2), (2, 2, 4, 4, 4)),
}
FORMS = ["lora", "with S", "from start", "from start with S", "another rank at the start"]


def made(kind, dtype=torch.float64):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make().to(dtype)
    return layer, normal(*shape, seed=1).to(dtype)


def factors_for(adapters, form, seed=2, **options):
    m, n = adapters.matrix_shape
    A, B = normal(3, n, seed=seed), normal(m, 3, seed=seed + 1)
    S = normal(3, seed=seed + 2).abs() if "S" in form else None
    start = {}
    if form == "another rank at the start":
        start = {"A0": normal(2, n, seed=seed + 3), "B0": normal(m, 2, seed=seed + 4)}
    found = LowRankFactors(A, B, S, from_start="from start" in form, **start, **options)
    return found


def move(factors, size=0.3):
    """Away from the start, as a training step would."""
    with torch.no_grad():
        for i, p in enumerate(factors.parameters()):
            p.add_(size * normal(*p.shape, seed=40 + i).to(p.dtype))


def dense(factors):
    """c (B diag(S) A - B0 A0) written out."""
    S = torch.eye(factors.rank, dtype=factors.A.dtype)
    if factors.S is not None:
        S = torch.diag(factors.S)
    product = factors.B @ S @ factors.A
    if factors.A0 is not None:
        product = product - factors.B0 @ factors.A0
    return factors.scale * product


def reference(layer, factors, x):
    """The layer with its dense weight changed, differentiable in the factors."""
    change = dense(factors)
    weight = layer.weight.detach()
    change = change.T if type(layer) is conv1d else change.reshape(weight.shape)
    twin = copy.deepcopy(layer)
    twin.__dict__.pop("forward", None)
    return torch.func.functional_call(twin, {"weight": weight + change}, (x,))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_those_of_the_changed_weight(kind, form):
    layer, x = made(kind)
    layer.requires_grad_(False)
    x.requires_grad_()
    adapters = LowRankLinear.of(layer)
    factors = adapters.add("a", factors_for(adapters, form, scale=0.7))
    move(factors)
    wanted = [x, *factors.parameters()]
    expected = reference(layer, factors, x)
    dy = normal(*expected.shape, seed=9)
    gradients = torch.autograd.grad(expected, wanted, dy)
    y = layer(x)
    assert torch.allclose(y, expected, rtol=1e-11, atol=1e-11)
    for got, right in zip(torch.autograd.grad(y, wanted, dy), gradients, strict=True):
        assert torch.allclose(got, right, rtol=1e-10, atol=1e-10)
    assert torch.allclose(factors.delta(), dense(factors), atol=1e-11)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_output_is_the_base_to_the_bit(kind, dtype):
    layer, x = made(kind, dtype)
    base = layer(x)
    adapters = LowRankLinear.of(layer)
    factors = adapters.add("a", factors_for(adapters, "from start with S"))
    assert layer(x).equal(base)
    move(factors)
    assert not layer(x).equal(base)
    with adapters.off():
        assert layer(x).equal(base)
    factors.enabled = False
    assert layer(x).equal(base)
    factors.enabled = True
    adapters.detach()
    assert layer(x).equal(base) and "forward" not in layer.__dict__


@pytest.mark.parametrize("kind", ["linear", "gpt-2", "kernels", "groups"])
def test_the_change_merged_is_the_adapter_attached(kind):
    layer, x = made(kind)
    adapters = LowRankLinear.of(layer)
    factors = adapters.add("a", factors_for(adapters, "from start with S", scale=0.4))
    move(factors)
    expected = layer(x)
    change = adapters.change("a")
    adapters.detach()
    change.add_to(layer.weight)
    assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5)  # changes are fp32


def test_no_weight_gradient_and_no_new_names():
    layer, x = made("linear")
    names = list(layer.state_dict())
    adapters = LowRankLinear.of(layer)
    adapters.add("a", factors_for(adapters, "lora"))
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None
    assert list(layer.state_dict()) == names == [n for n, _ in layer.named_parameters()]


def test_a_base_that_trains_gets_its_own_gradients():
    layer, x = made("linear")
    twin = copy.deepcopy(layer)
    adapters = LowRankLinear.of(layer)
    adapters.add("a", factors_for(adapters, "lora"))
    dy = normal(2, 5, 8, seed=3)
    layer(x).backward(dy)
    twin(x).backward(dy)
    assert torch.allclose(layer.weight.grad, twin.weight.grad)
    assert torch.allclose(layer.bias.grad, twin.bias.grad)


def test_several_adapters_add_up():
    layer, x = made("linear")
    base = layer(x)
    adapters = LowRankLinear.of(layer)
    assert LowRankLinear.of(layer) is not adapters  # nothing is patched before the first adapter
    parts = []
    for seed, name in enumerate(["one", "two"]):
        adapters.add(name, factors_for(adapters, "lora", seed=10 * seed))
        with torch.no_grad():
            parts.append(x @ dense(adapters[name]).T)
    assert LowRankLinear.of(layer) is adapters
    assert torch.allclose(layer(x), base + parts[0] + parts[1])
    adapters["one"].enabled = False
    assert torch.allclose(layer(x), base + parts[1])
    adapters.detach("two")
    adapters["one"].enabled = True
    assert torch.allclose(layer(x), base + parts[0])
    adapters.detach("one")
    assert "forward" not in layer.__dict__


def test_dropout_falls_on_the_trained_part_alone():
    layer, x = made("linear")
    adapters = LowRankLinear.of(layer)
    base = layer(x)
    factors = adapters.add("a", factors_for(adapters, "from start", dropout=0.5))
    move(factors)
    torch.manual_seed(5)
    got = layer(x)
    torch.manual_seed(5)
    dropped = F.dropout(x, 0.5)
    expected = base + dropped @ (factors.B @ factors.A).T - x @ (factors.B0 @ factors.A0).T
    assert torch.allclose(got, expected)
    layer.eval()
    assert torch.allclose(layer(x), base + x @ dense(factors).T)


def test_a_deep_copy_has_adapters_of_its_own():
    layer, x = made("linear")
    adapters = LowRankLinear.of(layer)
    adapters.add("a", factors_for(adapters, "lora"))
    twin = copy.deepcopy(layer)
    assert twin(x).equal(layer(x))
    own = LowRankLinear.of(twin)
    assert own is not adapters and own.layer is twin
    before = layer(x)
    with torch.no_grad():
        own["a"].B.zero_()
    assert not twin(x).equal(before) and layer(x).equal(before)


def test_the_state_resumes_exactly():
    layer, x = made("linear")
    adapters = LowRankLinear.of(layer)
    factors = adapters.add("a", factors_for(adapters, "from start with S"))
    move(factors)
    state = {k: {n: t.clone() for n, t in v.items()} for k, v in adapters.state_dict().items()}
    expected = layer(x)
    move(factors)
    adapters.load_state_dict(state)
    assert layer(x).equal(expected)
    with pytest.raises(DataError, match="adapters"):
        adapters.load_state_dict({"b": state["a"]})
    del state["a"]["S"]
    with pytest.raises(DataError, match="shapes"):
        adapters.load_state_dict(state)


def test_factors_stay_fp32_beside_a_bf16_base():
    layer, x = made("linear", torch.bfloat16)
    adapters = LowRankLinear.of(layer)
    m, n = adapters.matrix_shape
    A, B = normal(3, n, dtype=torch.float32), normal(m, 3, seed=1, dtype=torch.float32)
    factors = adapters.add("a", LowRankFactors(A, B))
    y = layer(x.requires_grad_())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert factors.A.grad.dtype == factors.B.grad.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16
    exact = x.float() @ (layer.weight.float() + B @ A).T + layer.bias.float()
    assert (y.float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_autocast():
    layer, x = made("linear", torch.float32)
    adapters = LowRankLinear.of(layer)
    factors = adapters.add("a", factors_for(adapters, "from start").float())
    base = layer(x)
    move(factors)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.requires_grad_())
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.dtype == torch.float32
    assert (y - exact).abs().max() < 0.05 * (exact - base).abs().max()


def test_the_same_factors_on_layers_that_share_a_weight():
    one, two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    two.weight = one.weight
    factors = LowRankFactors(normal(2, 4), normal(4, 2)).float()
    for layer in (one, two):
        LowRankLinear.of(layer).add("a", factors)
    x = normal(3, 4, dtype=torch.float32)
    assert one(x).equal(two(x))
    (one(x).sum() + two(x).sum()).backward()
    doubled = factors.A.grad.clone()
    factors.A.grad = None
    one(x).sum().backward()
    assert torch.allclose(doubled, 2 * factors.A.grad)


def test_like_lora_of_peft_and_pissa_of_peft():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16))
    base = copy.deepcopy(model[0])
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["0"], init_lora_weights="pissa", lora_dropout=0.0
    )
    wrapped = peft.get_peft_model(model, config)
    lora = wrapped.base_model.model[0]
    A, B = lora.lora_A["default"].weight, lora.lora_B["default"].weight
    adapters = LowRankLinear.of(base)
    factors = adapters.add("a", LowRankFactors(A, B, from_start=True, scale=2.0))
    with torch.no_grad():
        for theirs, ours in ((A, factors.A), (B, factors.B)):
            step = normal(*theirs.shape, seed=3, dtype=torch.float32)
            theirs.add_(0.1 * step)
            ours.add_(0.1 * step)
    x = normal(6, 20, dtype=torch.float32)
    assert torch.allclose(base(x), wrapped(x), atol=1e-5)
    base(x).square().sum().backward()
    wrapped(x).square().sum().backward()
    assert torch.allclose(factors.A.grad, A.grad, rtol=1e-4, atol=1e-4)
    assert torch.allclose(factors.B.grad, B.grad, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing():
    from torch.utils.checkpoint import checkpoint

    layer, x = made("linear")
    adapters = LowRankLinear.of(layer)
    factors = adapters.add("a", factors_for(adapters, "lora"))
    x.requires_grad_()
    layer(x).square().sum().backward()
    expected = factors.A.grad.clone()
    factors.A.grad = None
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert factors.A.grad.equal(expected)


def test_bad_input():
    A, B = torch.ones(2, 12), torch.ones(8, 2)
    for bad in ((A, B.T), (A[0], B), (A[:0], B[:, :0])):
        with pytest.raises(DataError, match="expected"):
            LowRankFactors(*bad)
    with pytest.raises(DataError, match=r"S \(3,\)"):
        LowRankFactors(A, B, torch.ones(3))
    with pytest.raises(DataError, match="alone"):
        LowRankFactors(A, B, A0=A)
    with pytest.raises(DataError, match="A0"):
        LowRankFactors(A, B, A0=A[:, 1:], B0=B)
    with pytest.raises(ConfigError, match="dropout"):
        LowRankFactors(A, B, dropout=1.0)
    layer, _ = made("linear", torch.float32)
    adapters = LowRankLinear.of(layer)
    with pytest.raises(DataError, match="factors of a matrix"):
        adapters.add("a", LowRankFactors(A[:, 1:], B))
    with pytest.raises(DataError, match="NaN"):
        adapters.add("a", LowRankFactors(A * torch.nan, B))
    adapters.add("a", LowRankFactors(A, B))
    with pytest.raises(DataError, match="already"):
        adapters.add("a", LowRankFactors(A, B))
    with pytest.raises(DataError, match="no adapter 'b'"):
        adapters.change("b")
    for other in (nn.Embedding(3, 4), nn.ConvTranspose2d(2, 2, 3), nn.LayerNorm(4)):
        with pytest.raises(DataError, match=type(other).__name__):
            LowRankLinear.of(other)
    with pytest.raises(DataError, match="MultiheadAttention"):
        LowRankLinear.of(nn.MultiheadAttention(4, 2).out_proj)
    patched = nn.Linear(12, 8)
    patched.forward = lambda x: x
    with pytest.raises(DataError, match="patched"):
        LowRankLinear.of(patched)

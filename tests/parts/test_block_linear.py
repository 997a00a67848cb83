"""Blocks of linear layers against slices of dense gradients, and what autograd keeps for them."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from passband.errors import ConfigError, DataError
from passband.parts.block_linear import BlockLinear
from passband.parts.edits import Block

RANGE, SCATTERED = torch.tensor([3, 4, 5]), torch.tensor([8, 1, 4])


def conv1d(n, m):
    layer = pytest.importorskip("transformers").pytorch_utils.Conv1D(m, n)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def layer_of(kind, n=10, m=9, seed=0):
    torch.manual_seed(seed)
    made = {
        "linear": lambda: nn.Linear(n, m), "no bias": lambda: nn.Linear(n, m, bias=False),
        "conv1d": lambda: conv1d(n, m),
    }
    return made[kind]()


def data(*shape, seed=5, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def part(kind, side, units, weight):
    """The block, from the sides' meaning: a Linear's weight is [m, n], a Conv1D's [n, m]."""
    units = units.sort().values
    along_rows = (side == "outputs") != (kind == "conv1d")
    return weight[units] if along_rows else weight[:, units]


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("units", [RANGE, SCATTERED, torch.arange(9)], ids=["range", "any", "9"])
@pytest.mark.parametrize("shape", [(10,), (4, 10), (2, 3, 10), (2, 2, 2, 10)], ids=len)
def test_gradients_are_slices_of_dense_ones(kind, side, units, shape):
    if kind == "conv1d" and len(shape) == 1:
        shape = (1, 10)
    layer = layer_of(kind)
    dense = copy.deepcopy(layer)
    block = BlockLinear(layer, **{side: units})
    assert block.values.shape == part(kind, side, units, dense.weight).shape
    assert torch.equal(block.values, part(kind, side, units, dense.weight))
    x = [data(*shape).requires_grad_() for _ in range(2)]
    y = [module(x_) for module, x_ in zip((layer, dense), x, strict=True)]
    assert torch.equal(*y)  # the layer's own product, to the bit
    for y_ in y:
        (y_ * data(*y_.shape, seed=6)).sum().backward()
    assert layer.weight.grad is None
    expected = part(kind, side, units, dense.weight.grad)
    assert torch.allclose(block.values.grad, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(x[0].grad, x[1].grad, rtol=1e-5, atol=1e-5)
    if kind != "no bias":
        assert torch.allclose(layer.bias.grad, dense.bias.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_gradients_against_finite_differences(kind, side):
    layer = layer_of(kind, 5, 6).double()
    block = BlockLinear(layer, **{side: torch.tensor([0, 3])})
    x = data(3, 5, dtype=torch.float64).requires_grad_()

    analytic = torch.autograd.grad(layer(x).pow(2).sum(), (x, block.values, layer.bias))
    eps = 1e-6
    for tensor, gradient in zip((x, block.values, layer.bias), analytic, strict=True):
        for at in range(tensor.numel()):
            with torch.no_grad():
                ends = []
                for sign in (1, -1):
                    tensor.view(-1)[at] += sign * eps
                    ends.append(layer(x).pow(2).sum())
                    tensor.view(-1)[at] -= sign * eps
            slope = (ends[0] - ends[1]) / (2 * eps)
            assert gradient.reshape(-1)[at].item() == pytest.approx(slope.item(), rel=1e-5)


class Saved:
    """Tensors that autograd packs for backward."""

    def __enter__(self):
        self.tensors = []

        def pack(t):
            self.tensors.append(t)
            return t

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def bytes_without(self, *parameters):
        """Of whole storages, once each: a view keeps all that it was taken from."""
        known = {p.untyped_storage().data_ptr() for p in parameters}
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in self.tensors}
        return sum(s.nbytes() for key, s in storages.items() if key not in known)


@pytest.mark.parametrize("units", [torch.arange(8, 24), torch.arange(0, 256, 16)])
def test_only_the_selected_inputs_are_saved(units):
    layer = nn.Linear(256, 64)
    x = data(4, 50, 256)
    for needs_x in (False, True):
        dense = copy.deepcopy(layer)
        with Saved() as whole:
            dense(x.clone().requires_grad_(needs_x))
        assert whole.bytes_without(dense.weight) == 4 * 50 * 256 * 4
        block = BlockLinear(layer, inputs=units)
        with Saved() as saved:
            layer(x.clone().requires_grad_(needs_x))
        assert saved.bytes_without(layer.weight) == 4 * 50 * 16 * 4
        # The weight only where a gradient goes on below it.
        assert any(t is layer.weight or t.data_ptr() == layer.weight.data_ptr()
                   for t in saved.tensors) == needs_x
        block.detach()


def test_selected_outputs_save_x_itself():
    layer = nn.Linear(32, 64)
    BlockLinear(layer, outputs=torch.arange(5))
    x = data(7, 32)
    with Saved() as saved:
        layer(x)
    assert [t.data_ptr() for t in saved.tensors] == [x.data_ptr()]


def test_nothing_is_saved_without_gradients():
    layer = nn.Linear(8, 8)
    BlockLinear(layer, inputs=torch.arange(3))
    with Saved() as saved, torch.no_grad():
        y = layer(data(2, 8))
    assert not saved.tensors and not y.requires_grad
    layer.bias.requires_grad_(False)
    with torch.inference_mode():
        layer(data(2, 8))


def stack(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(),
                         nn.Linear(12, 4, bias=False))


@pytest.mark.parametrize("parametrisation", ["value", "delta"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_follows_dense_adamw_on_the_same_block(parametrisation, checkpointed):
    """Accumulation, clipping, weight decay; float64 so that only a wrong gradient can differ."""
    model, reference = stack().double(), stack().double()
    for p in [*model.parameters(), *reference.parameters()]:
        p.requires_grad_(False)
    start = [m.weight.clone() for m in (reference[2], reference[4])]
    blocks = [
        BlockLinear(model[2], outputs=SCATTERED, parametrisation=parametrisation),
        BlockLinear(model[4], inputs=SCATTERED, parametrisation=parametrisation),
    ]
    rows, columns = SCATTERED.sort().values, SCATTERED.sort().values
    first = [start[0][rows], start[1][:, columns]]
    delta = parametrisation == "delta"
    leaves = [nn.Parameter(torch.zeros_like(b) if delta else b.clone()) for b in first]
    options = {"lr": 0.03, "weight_decay": 0.2}
    ours = torch.optim.AdamW([b.values for b in blocks], **options)
    theirs = torch.optim.AdamW(leaves, **options)

    def dense_loss(x):
        now = [leaf + b if delta else leaf for leaf, b in zip(leaves, first, strict=True)]
        w2 = start[0].index_copy(0, rows, now[0])
        w4 = start[1].index_copy(1, columns, now[1])
        h = torch.tanh(reference[0](x))
        h = torch.tanh(nn.functional.linear(h, w2, reference[2].bias))
        return nn.functional.linear(h, w4).square().mean()

    for step in range(25):
        for micro in range(2):
            x = data(5, 6, seed=10 * step + micro, dtype=torch.float64)
            if checkpointed:
                y = checkpoint(model, x, use_reentrant=False)
            else:
                y = model(x)
            (y.square().mean() / 2).backward()
            (dense_loss(x) / 2).backward()
        for optimizer in (ours, theirs):
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.01)
            optimizer.step()
            optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    for block, leaf in zip(blocks, leaves, strict=True):
        assert torch.allclose(block.values, leaf, rtol=1e-9, atol=1e-12)
        block.sync()
    now = [leaf + b if delta else leaf for leaf, b in zip(leaves, first, strict=True)]
    for module, old, at, new in zip(
        (model[2], model[4]), start, ((rows,), (slice(None), columns)), now, strict=True
    ):
        expected = old.clone()
        expected[at] = new.detach()
        assert torch.allclose(module.weight, expected, rtol=1e-9, atol=1e-12)
        untouched = torch.ones_like(old, dtype=torch.bool)
        untouched[at] = False
        assert torch.equal(module.weight[untouched], old[untouched])


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}], ids=str)
def test_steps_of_fused_optimisers_are_noticed(options):
    layer = layer_of("linear")
    block = BlockLinear(layer, inputs=RANGE)
    optimizer = torch.optim.AdamW([block.values], lr=0.1, **options)
    for _ in range(2):
        layer(data(2, 10)).sum().backward()
        optimizer.step()
        layer(data(2, 10))
        assert torch.equal(layer.weight[:, 3:6], block.values)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_bf16_weights_have_float32_values(side):
    layer = layer_of("linear").bfloat16()
    dense = copy.deepcopy(layer).float()
    start = layer.weight.detach().clone()
    block = BlockLinear(layer, **{side: SCATTERED})
    assert block.values.dtype == torch.float32
    x = data(16, 10, dtype=torch.bfloat16).requires_grad_()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    dense(x.detach().float()).square().sum().backward()
    expected = part("linear", side, SCATTERED, dense.weight.grad)
    assert block.values.grad.dtype == torch.float32 and x.grad.dtype == torch.bfloat16
    assert torch.allclose(block.values.grad, expected, rtol=0.05, atol=0.05 * expected.abs().max())
    with torch.no_grad():
        block.values.add_(2.0**-12)  # less than bf16 resolves in most entries: nothing is lost
        block.values.add_(1.0)
    block.sync()
    here = part("linear", side, SCATTERED, start).float() + 2.0**-12 + 1.0
    assert torch.equal(part("linear", side, SCATTERED, layer.weight), here.bfloat16())


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_autocast(side):
    layer, x = layer_of("linear"), data(8, 10)
    dense = copy.deepcopy(layer)
    block = BlockLinear(layer, **{side: SCATTERED})
    xs = [x.clone().requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        ys = [layer(xs[0]), dense(xs[1])]
    assert ys[0].dtype == torch.bfloat16 and torch.equal(*ys)
    for y in ys:
        y.float().square().sum().backward()
    expected = part("linear", side, SCATTERED, dense.weight.grad)
    tolerance = {"rtol": 0.02, "atol": 0.02 * float(expected.abs().max())}
    assert torch.allclose(block.values.grad, expected, **tolerance)
    assert torch.allclose(xs[0].grad, xs[1].grad, **tolerance)
    assert block.values.grad.dtype == torch.float32 == xs[0].grad.dtype


@pytest.mark.parametrize("units", [RANGE, SCATTERED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_off_and_detach_to_the_bit(units, dtype):
    layer = layer_of("conv1d").to(dtype)
    layer.weight.requires_grad_(True)
    start = layer.weight.detach().clone()
    x = data(3, 10, dtype=dtype)
    before = layer(x)
    block = BlockLinear(layer, outputs=units)
    with torch.no_grad():
        block.values.mul_(1.7)
    loss = layer(x.requires_grad_()).sum()
    trained = layer.weight.detach().clone()
    assert not torch.equal(trained, start)
    with block.off(), torch.no_grad():
        assert torch.equal(layer.weight, start)
        with block.off():
            assert torch.equal(layer(x), before)
        assert torch.equal(layer(x), before)
    assert torch.equal(layer.weight, trained)
    loss.backward()  # the teacher's pass in between didn't touch the graph
    block.detach(restore=False)
    assert torch.equal(layer.weight, trained) and layer.weight.requires_grad
    assert "forward" not in vars(layer)
    again = BlockLinear(layer, outputs=units)
    with torch.no_grad():
        again.values.zero_()
    again.sync()
    again.detach()
    assert torch.equal(layer.weight, trained)
    again.detach()
    with pytest.raises(DataError, match="detached"):
        again.sync()


def test_a_deep_copy_trains_on_its_own():
    model = stack()
    block = BlockLinear(model[4], inputs=RANGE)
    with torch.no_grad():
        block.values.add_(1.0)
    twin = copy.deepcopy(model)
    x = data(2, 6)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        block.values.zero_()
    model(x)
    assert not torch.equal(twin[4].weight, model[4].weight)
    twin(x).sum().backward()
    theirs = twin[4].forward.__self__
    assert theirs.values is not block.values and theirs.linear is twin[4]
    assert theirs.values.grad is not None and block.values.grad is None


def test_state_dict_names_stay():
    model = stack()
    names = list(model.state_dict())
    BlockLinear(model[2], inputs=RANGE)
    assert list(model.state_dict()) == names and len(list(model.parameters())) == 5


def test_wrong_layers_and_units():
    layer = nn.Linear(10, 9)
    for units, said in (
        (torch.tensor([1, 1]), "repeated"), (torch.tensor([10]), "unit 10"),
        (torch.tensor([-1]), "unit -1"), (torch.zeros(0, dtype=torch.long), "at least one"),
        (torch.tensor([0.5]), "float32"), (torch.tensor([True]), "bool"),
    ):
        with pytest.raises(DataError, match=said):
            BlockLinear(layer, inputs=units)
    with pytest.raises(DataError, match="unit 9 of down"):
        BlockLinear(layer, outputs=torch.tensor([9]), name="down")
    with pytest.raises(ConfigError, match="inputs or outputs"):
        BlockLinear(layer)
    with pytest.raises(ConfigError, match="inputs or outputs"):
        BlockLinear(layer, inputs=RANGE, outputs=RANGE)
    with pytest.raises(ConfigError, match="parametrisation"):
        BlockLinear(layer, inputs=RANGE, parametrisation="both")
    for other in (nn.Conv1d(3, 3, 1), nn.MultiheadAttention(4, 2).out_proj, nn.Bilinear(2, 2, 2)):
        with pytest.raises(DataError, match=r"expected: nn\.Linear"):
            BlockLinear(other, inputs=torch.tensor([0]))
    assert "forward" not in vars(layer) and layer.weight.requires_grad
    block = BlockLinear(layer, inputs=RANGE)
    with pytest.raises(DataError, match="patched already"):
        BlockLinear(layer, inputs=SCATTERED)
    with torch.no_grad():
        block.values[0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        block.edit_change()
    with torch.no_grad():
        layer.weight[0, 0] = float("inf")
    block.detach()
    with pytest.raises(DataError, match="down has 1 NaN"):
        BlockLinear(layer, inputs=RANGE, name="down")
    half = nn.Linear(4, 4)
    attached = BlockLinear(half, inputs=torch.tensor([0]))
    half.bfloat16()
    with pytest.raises(DataError, match="bfloat16"):
        attached.sync()


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_edit_change(kind, side):
    layer = layer_of(kind)
    start = layer.weight.detach().clone()
    block = BlockLinear(layer, **{side: SCATTERED})
    with torch.no_grad():
        block.values.add_(data(*block.values.shape))
    block.sync()
    change = block.edit_change()
    assert isinstance(change, Block)
    assert torch.equal(change.delta(), layer.weight.detach() - start)

"""Many seeds at once are the same as one after the other by torch's own optimisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passband.errors import ConfigError, DataError
from passband.parts.seeds import Each, permutations, train_seeds

SEEDS, STEPS = [3, 8, 11], 25
X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(4, (3, 24), generator=torch.Generator().manual_seed(1))


def make(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


OPTIMIZERS = {
    "adamw": (
        {"optimizer": "adamw", "betas": (0.9, 0.98)},
        lambda p, lr, wd: torch.optim.AdamW(p, lr=lr, betas=(0.9, 0.98), weight_decay=wd),
    ),
    "adam": ({"optimizer": "adam"}, lambda p, lr, wd: torch.optim.Adam(p, lr=lr, weight_decay=wd)),
    "sgd": (
        {"optimizer": "sgd", "momentum": 0.9},
        lambda p, lr, wd: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=wd),
    ),
}


def one_by_one(build, lrs, decays, batches, schedule):
    """Losses [STEPS, S] and final models of the plain loop."""
    losses, models = [], []
    for i, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        model = make(seed)
        optimizer = build(model.parameters(), lrs[i], decays[i])
        rows = []
        for step, index in zip(range(STEPS), batches(seed), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = lrs[i] * schedule(step)
            value = loss(model, X[index], LABELS[i][index])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            rows.append(value.item())
        losses.append(rows)
        models.append(model)
    return np.array(losses).T, models


def whole(seed):
    while True:
        yield torch.arange(24)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize(("lr", "decay"), [
    (0.01, 0.0), (0.01, 0.3), ([0.01, 0.02, 0.005], [0.0, 0.5, 0.1]),
], ids=["plain", "decay", "rates by seed"])
def test_equals_a_loop_over_the_seeds(name, batch_size, lr, decay):
    options, build = OPTIMIZERS[name]

    def schedule(step: int) -> float:
        return 1.0 / (1.0 + 0.1 * step)

    runs = train_seeds(
        make, loss, (X, Each(LABELS)), SEEDS, STEPS, lr, weight_decay=decay, schedule=schedule,
        batch_size=batch_size, **options,
    )
    spread = [lr] * 3 if isinstance(lr, float) else lr
    decays = [decay] * 3 if isinstance(decay, float) else decay
    batches = whole if batch_size is None else lambda s: permutations(24, batch_size, s)
    losses, models = one_by_one(build, spread, decays, batches, schedule)
    np.testing.assert_allclose(runs.losses.numpy(), losses, rtol=2e-3, atol=1e-5)
    outputs = runs(X)
    for i, model in enumerate(models):
        with torch.no_grad():
            expected = model(X)
        torch.testing.assert_close(outputs[i], expected, rtol=2e-3, atol=2e-4)
        torch.testing.assert_close(runs.model(i)(X), outputs[i])
        again = make(0)
        again.load_state_dict(runs.unstack(i))
        torch.testing.assert_close(again(X), outputs[i])


def test_seeds_do_not_see_each_other():
    data = (X, Each(LABELS))
    together = train_seeds(make, loss, data, SEEDS, STEPS, 0.01)
    alone = train_seeds(make, loss, (X, Each(LABELS[1:2])), SEEDS[1:2], STEPS, 0.01)
    torch.testing.assert_close(together.losses[:, 1], alone.losses[:, 0], rtol=1e-4, atol=1e-6)
    assert (together.losses[0] != together.losses[0, 0]).sum() == 2


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_seeds(make, loss, (X, Each(LABELS)), SEEDS, 2, 0.01)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_only_what_should_decays():
    def nothing(model: nn.Module, x: Tensor) -> Tensor:
        return 0.0 * model(x).sum()

    runs = train_seeds(
        lambda seed: nn.Linear(5, 2), nothing, (X,), [0, 1], 3, 0.1, optimizer="sgd",
        weight_decay=0.5, decayed=lambda name, tensor: tensor.dim() > 1,
    )
    torch.manual_seed(0)
    start = nn.Linear(5, 2)
    torch.testing.assert_close(runs.unstack(0)["weight"], start.weight.detach() * 0.95**3)
    torch.testing.assert_close(runs.unstack(0)["bias"], start.bias.detach())


def test_data_may_be_a_function_of_the_step_and_rows_are_kept():
    def target(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    def data(step: int):
        return (torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(step)),)

    runs = train_seeds(
        lambda seed: nn.Linear(3, 1), target, lambda step: (Each(*data(step)),), [0, 1], 200,
        0.1, observe=lambda step, runs: {"bias": runs.tensors["bias"].detach().clone()}, every=80,
    )
    assert [row["step"] for row in runs.rows] == [0, 80, 160, 200]
    torch.testing.assert_close(
        runs.tensors["weight"], torch.ones(2, 1, 3), rtol=0, atol=0.02
    )
    assert (runs.rows[-1]["bias"] != runs.rows[0]["bias"]).all()


def test_dropout_differs_between_seeds_and_is_off_outside():
    def make_dropped(seed: int) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 1, bias=False))

    def same(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().sum()

    torch.manual_seed(0)
    runs = train_seeds(make_dropped, same, (X,), [4, 4], 1, 0.0)
    assert runs.losses[0, 0] != runs.losses[0, 1]  # the same weights, other units dropped
    torch.testing.assert_close(runs(X)[0], runs(X)[1])


def test_what_can_not_be_stacked_is_refused():
    def norm(seed: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))

    with pytest.raises(ConfigError, match="running statistics"):
        train_seeds(norm, loss, (X, Each(LABELS)), SEEDS, 1)
    free = train_seeds(
        lambda s: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        loss, (X, Each(LABELS)), SEEDS, 3,
    )
    assert torch.isfinite(free.losses).all()
    with pytest.raises(ConfigError, match="differ in"):
        train_seeds(lambda s: nn.Linear(5, 4 + s), loss, (X, Each(LABELS)), [0, 1], 1)
    with pytest.raises(ConfigError, match="2 values of lr for 3 seeds"):
        train_seeds(make, loss, (X, Each(LABELS)), SEEDS, 1, [0.1, 0.2])
    with pytest.raises(DataError, match="for 3 seeds"):
        train_seeds(make, loss, (X, Each(LABELS[:2])), SEEDS, 1)
    with pytest.raises(DataError, match="rows"):
        train_seeds(make, loss, (X[:5], Each(LABELS)), SEEDS, 1)
    with pytest.raises(ConfigError, match="batch_size"):
        train_seeds(make, loss, (X, Each(LABELS)), SEEDS, 1, batch_size=99)
    with pytest.raises(ConfigError, match="no seeds"):
        train_seeds(make, loss, (X, Each(LABELS)), [], 1)

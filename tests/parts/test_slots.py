"""Optimisers over slots against torch's AdamW and loops over single numbers."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from passband.errors import ConfigError, DataError
from passband.parts.selective import Selected
from passband.parts.slots import SM3, SlotAdamW, gather_state


def gradient(step, *shape, dtype=torch.float32):
    g = torch.Generator().manual_seed(step)
    return (torch.randn(*shape, generator=g) * 10.0 ** torch.randint(-3, 2, shape, generator=g)).to(
        dtype
    )


def start(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(99)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_equal_ages_are_torch_adamw_to_the_last_bit(decay, dtype):
    options = {"betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": decay}
    ours = [nn.Parameter(start(37, dtype=dtype)), nn.Parameter(start(3, 5, dtype=dtype))]
    theirs = copy.deepcopy(ours)
    a = SlotAdamW(ours, lr=0.01, **options)
    b = torch.optim.AdamW(theirs, lr=0.01, foreach=False, **options)
    rates = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda t: math.cos(t / 40)) for o in (a, b)
    ]
    for step in range(50):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = gradient(step, *p.shape, dtype=dtype)
            q.grad = p.grad.clone()
        for optimizer in (a, b, *rates):
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(a.state[p]["exp_avg_sq"], b.state[q]["exp_avg_sq"])
        assert bool((a.state[p]["age"] == 50).all()) and a.state[p]["age"].dtype == torch.int32


def test_each_cohort_is_a_torch_adamw_of_its_own():
    """Slots replaced at other times step like separate optimisers started then, to the bit."""
    options = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    values = nn.Parameter(start(40))
    ours = SlotAdamW([values], **options)
    cohorts = {}  # first slot -> parameter and optimiser of ten slots
    for first in range(0, 40, 10):
        cohorts[first] = nn.Parameter(values.detach()[first : first + 10].clone())
    own = {f: torch.optim.AdamW([p], foreach=False, **options) for f, p in cohorts.items()}
    for step in range(60):
        if step in (7, 20, 41):
            first = {7: 10, 20: 30, 41: 10}[step]
            slots = torch.arange(first, first + 10)
            with torch.no_grad():
                values[slots] = 0
            ours.seed(values, slots)
            cohorts[first] = nn.Parameter(torch.zeros(10))
            own[first] = torch.optim.AdamW([cohorts[first]], foreach=False, **options)
        values.grad = gradient(step, 40)
        ours.step()
        for first, p in cohorts.items():
            p.grad = values.grad[first : first + 10].clone()
            own[first].step()
    assert torch.equal(values, torch.cat([cohorts[first] for first in sorted(cohorts)]))
    assert sorted(set(ours.state[values]["age"].tolist())) == [19, 40, 60]


def number_by_number(x, gradients, lr, betas, eps, decay, before, m=0.0, v=0.0, age=0):
    b1, b2 = betas
    for g in gradients:
        m, v, age = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g, age + 1
        c1, c2 = 1 - b1**age, 1 - b2**age
        if before:
            x -= lr * m / ((math.sqrt(v) + eps) * c1 / math.sqrt(c2))
            x -= lr * decay * x
        else:
            x -= lr * decay * x
            x -= lr * (m / c1) / (math.sqrt(v / c2) + eps)
    return x


@pytest.mark.parametrize("placement", ["torch", "before"])
@pytest.mark.parametrize("apart", [False, True])
def test_formulas_number_by_number(placement, apart):
    """float64, with an eps that matters; every slot seeded differently if `apart`."""
    betas, eps, decay = (0.9, 0.99), 0.05, 2.0
    x = nn.Parameter(start(6, dtype=torch.float64))
    first = x.detach().tolist()
    optimizer = SlotAdamW(
        [x], lr=0.01, betas=betas, eps=eps, weight_decay=decay, eps_placement=placement
    )
    seeds = [(0.0, 0.0, 0)] * 6
    if apart:
        seeds = [(0.1 * i, 0.02 * i, 3 * i) for i in range(6)]
        m, v, age = (torch.tensor(column) for column in zip(*seeds, strict=True))
        optimizer.seed(x, torch.arange(6), m.double(), v.double(), age)
        seeds = [(m[i].double().item(), v[i].double().item(), 3 * i) for i in range(6)]
    history = [gradient(step, 6, dtype=torch.float64) for step in range(25)]
    for g in history:
        x.grad = g
        optimizer.step()
    for i in range(6):
        expected = number_by_number(
            first[i], [g[i].item() for g in history], 0.01, betas, eps, decay,
            placement == "before", *seeds[i],
        )
        assert x[i].item() == pytest.approx(expected, rel=1e-12)


def test_a_seed_is_what_constant_gradients_leave():
    """m = g (1 - b1^c), v = g^2 (1 - b2^c) at age c: as if it had seen g for c steps."""
    a, b = (nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    one, two = SlotAdamW([a], lr=0.1), SlotAdamW([b], lr=0.1)
    g = torch.tensor([0.5, -2.0, 1e-3], dtype=torch.float64)
    for _ in range(5):
        a.grad = g.clone()
        one.step()
    two.seed(b, torch.arange(3), g * (1 - 0.9**5), g * g * (1 - 0.999**5), 5)
    with torch.no_grad():
        b.copy_(a)
    a.grad, b.grad = gradient(1, 3).double(), gradient(1, 3).double()
    one.step()
    two.step()
    assert torch.allclose(a, b, rtol=1e-12, atol=0)


def test_survivors_keep_their_moments():
    whole, part = nn.Parameter(start(10)), nn.Parameter(start(10))
    a, b = SlotAdamW([whole], lr=0.1), SlotAdamW([part], lr=0.1)
    keep = torch.arange(10) % 3 == 0
    a.seed(whole, torch.tensor([3, 4]), 0.1, 0.2, 7)
    b.seed(part, torch.tensor([3, 4]), 0.1, 0.2, 7)
    for step in range(8):
        g = gradient(step, 10)
        whole.grad = g
        part.grad = None
        if step == 4:
            part.data = part.data[keep]
            b.gather(part, keep)
        part.grad = g[keep] if step >= 4 else g.clone()
        a.step()
        b.step()
    assert torch.equal(whole[keep], part)
    assert b.state[part]["age"].tolist() == [8, 15, 8, 8]


def test_states_of_other_optimisers_are_gathered():
    p = nn.Parameter(start(4))
    optimizer = torch.optim.AdamW([p], lr=0.1)
    p.grad = gradient(0, 4)
    optimizer.step()
    old = optimizer.state[p]["exp_avg"].clone()
    keep = torch.tensor([True, False, True, True])
    gather_state(optimizer, p, keep)
    assert torch.equal(optimizer.state[p]["exp_avg"], old[keep])
    assert optimizer.state[p]["step"].item() == 1


def test_coarse_moments_keep_exact_ages_and_survive_a_reload():
    """300 steps: an age in bfloat16 would stand still at 256."""
    p = nn.Parameter(start(5))
    optimizer = SlotAdamW([p], lr=0.01, moments_dtype=torch.bfloat16)
    m, v, x = torch.zeros(5), torch.zeros(5), p.detach().clone()
    optimizer.seed(p, torch.tensor([2]), age=1)
    for step in range(300):
        p.grad = gradient(step, 5)
        optimizer.step()
        if step == 150:
            other = SlotAdamW([p], moments_dtype=torch.bfloat16)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer = other
        m = (0.9 * m + 0.1 * p.grad)
        v = (0.999 * v + 0.001 * p.grad**2)
        age = torch.tensor([1, 1, 2, 1, 1]) + step
        update = (m / (1 - 0.9**age)) / ((v / (1 - 0.999**age)).sqrt() + 1e-8)
        x = x * (1 - 0.01 * 0.01) - 0.01 * update
        m, v = m.bfloat16().float(), v.bfloat16().float()
    state = optimizer.state[p]
    assert state["age"].tolist() == [300, 300, 301, 300, 300]
    assert state["age"].dtype == torch.int32 and state["exp_avg"].dtype == torch.bfloat16
    # Rounding to 8 bits is discontinuous: now and then one moment falls on the other side.
    assert torch.allclose(p, x, atol=0.02)
    assert (p - start(5)).abs().max() > 0.05


def test_resume_of_slots_of_all_ages_is_exact():
    a = nn.Parameter(start(6))
    one = SlotAdamW([a], lr=0.1)
    for step in range(4):
        a.grad = gradient(step, 6)
        one.step()
        one.seed(a, torch.tensor([step]))
    b = nn.Parameter(a.detach().clone())
    two = SlotAdamW([b], lr=0.5)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert two.state[b]["age"].dtype == torch.int32
    for step in range(4, 8):
        a.grad, b.grad = gradient(step, 6), gradient(step, 6)
        one.step()
        two.step()
    assert torch.equal(a, b)


class SM3ByHand:
    """Dictionaries of Python floats, one entry after another."""

    def __init__(self, rows, columns, row_only=False):
        self.r, self.c, self.row_only = [0.0] * rows, [0.0] * columns, row_only
        self.u = {}

    def step(self, x, gradients, lr, eps, mu, decay):
        """x and gradients: dictionaries (i, j) -> number."""
        nu = {}
        for (i, j), g in gradients.items():
            low = self.r[i] if self.row_only else min(self.r[i], self.c[j])
            nu[i, j] = low + g * g
        for (i, j), n in nu.items():
            self.r[i] = max(self.r[i], n)
            self.c[j] = max(self.c[j], n)
        for (i, j), g in gradients.items():
            u = (1 - mu) * g / math.sqrt(nu[i, j] + eps) + mu * self.u.get((i, j), 0.0)
            self.u[i, j] = u
            x[i, j] -= lr * u
            x[i, j] -= lr * decay * x[i, j]


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("row_only", [False, True])
def test_sm3_by_hand(momentum, row_only):
    rows, columns, k = 5, 7, 16
    rng = np.random.default_rng(0)
    indices = torch.from_numpy(rng.permutation(rows * columns)[:k])
    values = nn.Parameter(torch.from_numpy(rng.normal(size=k)))
    place = [divmod(int(i), columns) for i in indices]
    x = dict(zip(place, values.tolist(), strict=True))
    hand = SM3ByHand(rows, columns, row_only)
    optimizer = SM3(
        [values], lr=0.05, momentum=momentum, eps=1e-3, weight_decay=0.5,
        places=lambda _: (indices, rows, columns), row_cover_only=row_only,
    )
    for step in range(30):
        if step == 15:  # slot 4 moves to a free entry
            free = next(i for i in range(rows * columns) if i not in set(indices.tolist()))
            indices[4], old, place[4] = free, place[4], divmod(free, columns)
            del x[old]
            x[place[4]] = 0.0
            with torch.no_grad():
                values[4] = 0.0
            optimizer.seed(values, torch.tensor([4]))
        values.grad = gradient(step, k, dtype=torch.float64)
        hand.step(
            x, dict(zip(place, values.grad.tolist(), strict=True)), 0.05, 1e-3, momentum, 0.5
        )
        optimizer.step()
        assert values.tolist() == pytest.approx([x[p] for p in place], rel=1e-12)
    r, c = optimizer.covers(values)
    assert r.tolist() == pytest.approx(hand.r, rel=1e-12)
    if row_only:
        assert c is None
    else:
        assert c.tolist() == pytest.approx(hand.c, rel=1e-12)
    slots = {key for key, t in optimizer.state[values].items() if t.numel() == k}
    assert slots == ({"momentum"} if momentum else set())


def test_sm3_of_a_dense_matrix_and_its_reload():
    x = nn.Parameter(start(3, 4, dtype=torch.float64))
    numbers = {(i, j): x[i, j].item() for i in range(3) for j in range(4)}
    hand, optimizer = SM3ByHand(3, 4), SM3([x], lr=0.1, momentum=0.5)
    for step in range(10):
        if step == 5:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = SM3([x], lr=9.0)
            optimizer.load_state_dict(state)
        x.grad = gradient(step, 3, 4, dtype=torch.float64)
        hand.step(
            numbers, {key: x.grad[key].item() for key in numbers}, 0.1, 1e-8, 0.5, 0.0
        )
        optimizer.step()
    assert x.flatten().tolist() == pytest.approx(list(numbers.values()), rel=1e-12)


def test_sm3_over_selected_entries():
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    selected = Selected(model, {"weight": torch.tensor([0, 1, 13, 22])}, also=["bias"])
    optimizer = SM3(selected.parameters(), lr=0.1, places=selected.place)
    for step in range(3):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    r, c = optimizer.covers(selected.values["weight"])
    assert (r > 0).tolist() == [True, False, True, True]  # rows of 0, 1; 13; 22
    assert (c > 0).tolist() == [True, True, False, False, True, False]
    keep = torch.tensor([True, False, True, True])
    selected.keep("weight", keep)
    optimizer.gather(selected.values["weight"], keep)
    assert len(optimizer.state[selected.values["weight"]]["rows"]) == 4  # as many as slots, kept
    model(x).square().mean().backward()
    optimizer.step()


def test_no_gradient_no_step_and_closures():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for kind in (SlotAdamW, SM3):
        optimizer = kind([p, q], lr=0.1)

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            loss = p.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() == pytest.approx(p.grad.square().sum().item() / 4)
        assert torch.equal(q, torch.ones(3)) and q not in optimizer.state
        assert bool((p < 1).all())


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1e-8}, {"weight_decay": float("nan")},
        {"eps_placement": "after"}, {"moments_dtype": torch.int32},
    ],
    ids=str,
)
def test_wrong_options(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SlotAdamW([nn.Parameter(torch.zeros(2))], **wrong)


def test_wrong_places():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    optimizer = SM3([p], places=lambda _: (torch.arange(2), 2, 2))
    with pytest.raises(DataError, match="2 places for 3"):
        optimizer.step()

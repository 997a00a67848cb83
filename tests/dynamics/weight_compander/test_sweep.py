"""Many seeds at once are the seeds one by one; the arms do what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from passband.dynamics.layers import typical_size
from passband.dynamics.weight_compander.claims import closed_form, same_end, same_start
from passband.dynamics.weight_compander.model import parameter_groups
from passband.dynamics.weight_compander.sweep import Arm, digits_of, run
from passband.parts.seeds import permutations

TINY = Arm(hidden=(16,), epochs=2, lr=0.05)


class OneSeed:
    smoke, calibrate = True, True

    def seeds(self, n: int) -> list[int]:
        return list(range(1000, 1000 + n))


def test_a_stack_is_a_loop_with_parameter_groups() -> None:
    """Scales move at a tenth of the rate and do not decay, as in a loop of one's own."""
    arm = replace(TINY, method="compander", learn=True, weight_decay=0.01)
    seeds = (1000, 1001)
    found = run(arm, seeds)
    x, y, *_ = digits_of(seeds)
    for i, seed in enumerate(seeds):
        torch.manual_seed(seed)
        network = arm.network()
        groups = parameter_groups(network, arm.lr, arm.weight_decay)
        optimizer = torch.optim.SGD(groups, momentum=arm.momentum)
        order = permutations(x.shape[1], arm.batch_size, seed)
        for _ in range(arm.epochs * (x.shape[1] // arm.batch_size)):
            rows = next(order)
            optimizer.zero_grad()
            F.cross_entropy(network(x[i][rows]), y[i][rows]).backward()
            optimizer.step()
        for name, tensor in found.stack.unstack(i).items():
            torch.testing.assert_close(tensor, network.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_all_arms_start_from_the_same_function() -> None:
    seeds = (1000, 1001)
    x = digits_of(seeds)[2][0, :8]
    outputs = []
    for method in ("plain", "compander", "weight-norm"):
        torch.manual_seed(7)
        outputs.append(replace(TINY, method=method).network().eval()(x))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-5, rtol=1e-5)


def test_clipped_weights_stay_within_the_compander_s_bound() -> None:
    arm = replace(TINY, method="clip", bound=0.4)
    found = run(arm, (1000, 1001))
    for i, seed in enumerate(found.stack.seeds):
        torch.manual_seed(seed)
        start = replace(arm, method="plain").network()
        for layer, first in ((m, s) for m, s in zip(
            found.plain(i).modules(), start.modules(), strict=True
        ) if hasattr(m, "weight")):
            bound = 3 * 0.4 * torch.pi / 2 * typical_size(first.weight)
            assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=1e-5)


def test_accuracy_is_that_of_the_plain_networks() -> None:
    found = run(replace(TINY, method="compander", learn=True), (1000, 1001))
    for i in range(2):
        x, y = found.test[0][i], found.test[1][i]
        with torch.no_grad():
            right = (found.plain(i)(x).argmax(1) == y).double().mean()
        assert float(100 * right) == pytest.approx(float(found.accuracy[i]), abs=0.2)


@pytest.mark.parametrize("proof", [closed_form, same_start, same_end])
def test_mathematics_holds(proof) -> None:
    assert proof(OneSeed()).verdict == "holds"

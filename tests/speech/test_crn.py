"""The CRN: its published size, causality, masks, batches with padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passband.errors import ConfigError
from passband.speech.baselines.crn.model import CRN, sizes
from passband.speech.baselines.crn.system import CRNEnhancer

torch.set_num_threads(1)
CHANNELS = (4, 6, 8, 8, 8)


def lived_in(model: nn.Module) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    return model.eval()


def test_the_published_size() -> None:
    """17.58 M, as the paper's table says; its bins are 161, 80, 39, 19, 9, 4."""
    assert CRNEnhancer.from_preset("paper").parameter_count() == 17_579_457
    assert sizes(161, 5) == (161, 80, 39, 19, 9, 4)
    for preset, size in (("small", 713_924), ("tiny", 95_158)):  # of what it is compared with
        assert abs(CRNEnhancer.from_preset(preset).parameter_count() / size - 1) < 1e-3


@pytest.mark.parametrize("mask", ["complex", "magnitude"])
def test_masks(mask: str) -> None:
    torch.manual_seed(0)
    model = lived_in(CRN(channels=CHANNELS, mask=mask))
    x = torch.randn(2, 3_001)
    with torch.no_grad():
        wave, found, noisy = model(x, whole=True)
    assert wave.shape == x.shape
    assert found.shape == noisy.shape == (2, 161, 20)
    torch.testing.assert_close(noisy, model.frames(x))
    torch.testing.assert_close(wave, model.frames.inverse(noisy * found, 3_001))
    assert found.real.abs().max() <= 1
    assert bool((found.imag == 0).all()) == (mask == "magnitude")
    if mask == "magnitude":  # of the magnitude alone: the sign of the wave does not matter
        with torch.no_grad():
            torch.testing.assert_close(model(-x, whole=True)[1], found, rtol=0, atol=1e-6)


def test_causal() -> None:
    torch.manual_seed(0)
    model = lived_in(CRN(channels=CHANNELS))
    x = torch.randn(1, 4_000)
    changed = x.clone()
    changed[:, 2_000:] += torch.randn(1, 2_000)
    with torch.no_grad():
        a, b = model(x), model(changed)
    torch.testing.assert_close(a[:, :1_680], b[:, :1_680], rtol=0, atol=1e-6)
    assert (a - b)[:, 2_000:].abs().max() > 1e-2


def test_a_padded_batch_gives_what_each_recording_gives_alone() -> None:
    torch.manual_seed(0)
    model = lived_in(CRN(channels=CHANNELS))
    x, lengths = torch.randn(2, 4_000), torch.tensor([4_000, 1_111])
    with torch.no_grad():
        together = model(x, lengths)
        torch.testing.assert_close(together[1, :1_111], model(x[1:, :1_111])[0], rtol=0, atol=1e-5)
    assert not together[1, 1_111:].any()


@pytest.mark.parametrize(("fields", "text"), [
    ({"channels": (4,) * 8}, "8 steps on 161 bins"), ({"hop_length": 200}, "half"),
    ({"channels": (4, 0)}, "at least 1"),
])
def test_sizes_that_do_not_fit(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        CRNEnhancer.configure("small", **fields)

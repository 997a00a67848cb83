"""The network: sizes, equality with a plain second formulation, limits of its input."""

from __future__ import annotations

import pytest
import torch

from passband.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from passband.parts.flops import count_macs
from passband.parts.losses.separation import separation_loss
from passband.speech.bands import BandMasks, band_widths
from passband.speech.tiger.attention import WIDE, FullAttention, HeadNorm, attend
from passband.speech.tiger.model import TIGER, Interleave, OnePerSource
from passband.speech.tiger.scales import MultiScale, pooled
from passband.speech.tiger.weights import from_published
from tests.speech import tiger_plain as plain


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(**options: object) -> TIGER:
    with torch.device("meta"):
        return TIGER(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "expected"), [
    ({}, 821_932),
    ({"iterations": 8}, 821_932),
    ({"sources": 3, "channels": 132, "iterations": 8}, 839_780),
    ({"channels": 24, "hidden": 64}, 102_116),
    ({"channels": 16, "hidden": 32, "iterations": 2}, 56_188),
])
def test_the_published_sizes(options, expected):
    assert size(on_meta(**options)) == expected


def test_where_the_parameters_are():
    network = on_meta()
    path = network.separator.over_bands
    found = [network.split, network.separator, network.masks, path.scales, path.attention]
    assert [size(part) for part in found] == [92_036, 562_909, 166_987, 243_329, 37_741]


@pytest.mark.parametrize(("iterations", "reported"), [(4, 7.21e9), (8, 14.39e9)])
def test_multiply_accumulates_of_a_second(iterations, reported):
    """Counted in the authors' code: products and convolutions, without their pooling.

    Ours pools by matrix products: for each path and scale of S positions, O S H a sequence.
    """
    counted = count_macs(on_meta(iterations=iterations), torch.empty(1, 16_000))
    pooling = sum(
        sequences * sum(scales[:-1]) * scales[-1] * 256
        for sequences, scales in ((101, (67, 34, 17, 9, 5)), (67, (101, 51, 26, 13, 7)))
    )
    assert counted - iterations * pooling == pytest.approx(reported, rel=2e-3)


# ---- against the plain formulation ---------------------------------------------------------------

CASES = {
    "two talkers": {"channels": 8, "hidden": 12, "iterations": 2, "sources": 2},
    "three talkers": {"channels": 12, "hidden": 8, "iterations": 1, "sources": 3},
    "two scales": {"channels": 8, "hidden": 8, "iterations": 2, "sources": 2, "depth": 2},
    "from the coarsest scale": {
        "channels": 8, "hidden": 8, "iterations": 1, "sources": 2, "legacy_topdown": False,
    },
    "even bands": {
        "channels": 8, "hidden": 8, "iterations": 1, "sources": 2, "plan": "even",
    },
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [3000, 2501])
def test_equal_to_the_plain_formulation(name, length):
    case = {"depth": 5, "legacy_topdown": True, "plan": "speech"} | CASES[name]
    rate = {"sample_rate": 8000, "n_fft": 256, "hop_length": 64}
    network = TIGER(**case, **rate).double().eval()
    tensors = plain.weights(
        network.widths, case["channels"], case["hidden"], case["depth"], case["sources"]
    )
    network.load_state_dict(from_published(tensors, network))
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = plain.separate(
        tensors, x, network.widths, case["sources"], case["iterations"], case["depth"], 256, 64,
        legacy=case["legacy_topdown"],
    )
    with torch.no_grad():
        found = network(x)
        single = network.float()(x.float())
    largest = expected.abs().max()
    assert largest > 0.1
    # The window of the STFT is held in single precision.
    assert (found - expected).abs().max() < 1e-6 * largest
    assert (single - expected).abs().max() < 1e-5 * largest


def test_the_ways_up_differ():
    torch.manual_seed(0)
    legacy, corrected = MultiScale(8, 8), MultiScale(8, 8, legacy_topdown=False)
    corrected.load_state_dict(legacy.state_dict())
    x = torch.randn(2, 30, 8)
    assert (legacy.eval()(x) - corrected.eval()(x)).abs().max() > 1e-3


def test_one_network_per_source_uses_its_own_output_of_each():
    sizes = {"channels": 12, "hidden": 8, "iterations": 1, "sample_rate": 44_100, "n_fft": 2048,
             "hop_length": 512, "plan": "cinema"}
    network = OnePerSource(3, **sizes).eval()
    tensors = {}
    for seed, source in enumerate(("music", "effect", "dialog")):
        of_one = plain.weights(network.networks[0].widths, 12, 8, 5, 3, seed=seed)
        tensors |= {f"{source}.{name}": t.float() for name, t in of_one.items()}
    network.load_state_dict(from_published(tensors, network))
    x = torch.randn(1, 9000)
    with torch.no_grad():
        found = network(x)
        for k, inner in enumerate(network.networks):
            torch.testing.assert_close(found[:, k], inner(x)[:, k])
    assert (found.sum(1) - x).abs().max() > 1e-3


@pytest.mark.parametrize("channels", [1, 4, WIDE - 1, WIDE])
def test_norms_of_heads(channels):
    torch.manual_seed(0)
    norm = HeadNorm(3, channels).double()
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 5, 3 * channels, dtype=torch.float64, requires_grad=True)
    heads = x.unflatten(-1, (3, channels))
    centred = heads - heads.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = expected * norm.gain + norm.bias
    torch.testing.assert_close(norm(x), expected.flatten(-2))
    given = [x, *norm.parameters()]
    weights = torch.randn_like(x)
    for mine, plainly in zip(
        torch.autograd.grad((norm(x) * weights).sum(), given),
        torch.autograd.grad((expected.flatten(-2) * weights).sum(), given), strict=True,
    ):
        torch.testing.assert_close(mine, plainly)


def test_recomputing_changes_neither_loss_nor_gradient():
    torch.manual_seed(0)
    x = torch.randn(1, 5, 12, 8)
    grads = []
    for recompute in (False, True):
        torch.manual_seed(1)
        network = Interleave(8, 8, iterations=3, recompute=recompute)
        torch.manual_seed(2)  # dropout
        network(x).square().mean().backward()
        grads.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*grads)


# ---- bands ---------------------------------------------------------------------------------------


def test_the_bands_of_the_paper():
    widths = band_widths("speech", 16_000, 640)
    assert widths == (1,) * 40 + (4,) * 10 + (10,) * 8 + (20,) * 8 + (1,)


def test_the_bands_of_cinema():
    widths = band_widths("cinema", 44_100, 2048)
    assert widths == (2,) * 20 + (4,) * 10 + (11,) * 8 + (23,) * 8 + (46,) * 8 + (92,) * 2 + (121,)


@pytest.mark.parametrize("plan", ["speech", "cinema", "even"])
@pytest.mark.parametrize(("rate", "n_fft"), [
    (8000, 256), (8000, 320), (16_000, 512), (22_050, 1024), (44_100, 2048), (48_000, 64),
    (8000, 16),
])
def test_bands_cover_every_bin_once_at_any_rate(plan, rate, n_fft):
    widths = band_widths(plan, rate, n_fft)
    assert sum(widths) == n_fft // 2 + 1
    assert min(widths) >= 1
    if plan == "even":
        assert max(widths) - min(widths) <= 1


def test_a_remainder_of_no_bins_is_no_band():
    # 40 bins below 1 kHz and nothing left of the 41 but the Nyquist bin, or not even that.
    assert band_widths("speech", 2000, 80) == (1,) * 40 + (1,)
    assert band_widths("speech", 2000, 78) == (1,) * 40


def test_67_even_bands():
    widths = band_widths("even", 16_000, 640)
    assert len(widths) == 67
    assert sum(widths) == 321


def test_masks_sum_to_one_whatever_the_features():
    masks = BandMasks((1, 3, 3, 2), channels=6, sources=3)
    spectrum = torch.randn(2, 9, 4, dtype=torch.complex64)
    found = masks(100 * torch.randn(2, 4, 4, 6), spectrum)
    assert (found.sum(1) - spectrum).abs().max() < 1e-4
    assert found.abs().max() > 10


# ---- limits --------------------------------------------------------------------------------------


def tiny(**options: object) -> TIGER:
    torch.manual_seed(0)
    return TIGER(channels=8, hidden=8, iterations=1, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [16_000, 16_001, 12_345, 321, 320, 100, 1])
def test_any_length_is_kept_and_the_talkers_sum_to_the_mixture(length):
    x = torch.randn(1, length)
    with torch.no_grad():
        found = tiny()(x)
    assert found.shape == (1, 2, length)
    assert (found.sum(1) - x).abs().max() < 1e-5


def test_silence_stays_silent():
    network = tiny()
    x = torch.zeros(1, 4000, requires_grad=True)
    found = network(x)
    assert (found == 0).all()
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_batches_change_nothing():
    x = torch.randn(3, 3000)
    network = tiny()
    with torch.no_grad():
        torch.testing.assert_close(
            network(x), torch.cat([network(row[None]) for row in x]), atol=1e-5, rtol=0
        )


def test_long_sequences_attend_in_turns():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 50, 6), torch.randn(1, 2, 50, 6), torch.randn(1, 2, 50, 10)
    weights = (q @ k.transpose(2, 3) / 6**0.5).softmax(-1)
    torch.testing.assert_close(attend(q, k, v, most=200), weights @ v)


@pytest.mark.parametrize(("positions", "windows"), [(67, 5), (600, 38), (1201, 76)])
def test_pooling_is_torchs(positions, windows):
    x = torch.randn(2, positions, 3)
    expected = torch.nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), windows)
    torch.testing.assert_close(pooled(x, windows), expected.transpose(1, 2))


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match="8 channels for 3 sources"):
        TIGER(sources=3, channels=8, hidden=8)
    with pytest.raises(ConfigError, match="6 channels for 4 heads"):
        FullAttention(6, heads=4)
    with pytest.raises(ConfigError, match="depth"):
        TIGER(channels=8, hidden=8, depth=1)
    with pytest.raises(ConfigError, match="iterations"):
        TIGER(channels=8, hidden=8, iterations=0)
    with pytest.raises(UnknownNameError, match="band plan"):
        TIGER(channels=8, hidden=8, plan="bark")


def test_wrong_input_is_refused():
    for x in (torch.zeros(8000), torch.zeros(1, 1, 8000), torch.zeros(1, 0)):
        with pytest.raises(DataError):
            tiny()(x)


def test_published_weights_of_another_kind_are_refused():
    network = tiny()
    tensors = plain.weights(network.widths, 8, 8, 5, 2)
    with pytest.raises(CheckpointError, match="missing"):
        from_published({n: t for n, t in tensors.items() if n != "BN.7.1.bias"}, network)
    with pytest.raises(CheckpointError, match="no place"):
        from_published(tensors | {"more": torch.zeros(1)}, network)
    with pytest.raises(CheckpointError, match="shape"):
        from_published(plain.weights(network.widths, 12, 8, 5, 2), network)


# ---- loss ----------------------------------------------------------------------------------------


def test_the_loss_is_the_negative_snr_of_the_best_order():
    generator = torch.Generator().manual_seed(3)
    targets = torch.randn(2, 2, 500, generator=generator, dtype=torch.float64)
    estimates = targets.flip(1) + 0.3 * torch.randn(
        2, 2, 500, generator=generator, dtype=torch.float64
    )

    def snr(e: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        e, s = e - e.mean(), s - s.mean()
        ratio = s.square().sum() / ((s - e).square().sum() + 1e-8)
        return 10 * torch.log10(ratio + 1e-8)

    orders = [
        [sum(snr(e[p], s[k]) for k, p in enumerate(order)) / 2 for order in ((0, 1), (1, 0))]
        for e, s in zip(estimates, targets, strict=True)
    ]
    expected = -sum(max(both) for both in orders) / 2
    torch.testing.assert_close(separation_loss(estimates, targets), expected)
    fixed = -sum(both[0] for both in orders) / 2
    torch.testing.assert_close(separation_loss(estimates, targets, any_order=False), fixed)


def test_references_of_another_number_are_refused():
    with pytest.raises(DataError, match="references"):
        separation_loss(torch.zeros(1, 2, 10), torch.zeros(1, 3, 10))

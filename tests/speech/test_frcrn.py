"""FRCRN against its equations in complex numbers, counts of the published network, streams."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.speech.pairs import Example, Fixed
from passband.errors import CheckpointError, ConfigError, DataError, PassbandWarning
from passband.parts.complex_layers import (
    ComplexConv2d,
    ComplexConvTranspose2d,
    to_complex,
    to_parts,
)
from passband.speech.frcrn.attention import BlockAttention, SqueezeExcite
from passband.speech.frcrn.fsmn import FSMN, ComplexFSMN, along_frequency
from passband.speech.frcrn.harmonics import LOW, RATE, SLOT, Harmonics
from passband.speech.frcrn.layers import Down, Up
from passband.speech.frcrn.model import FRCRN
from passband.speech.frcrn.published import renamed
from passband.speech.frcrn.streaming import StreamingFRCRN
from passband.speech.frcrn.system import FRCRNEnhancer
from passband.speech.frcrn.unet import UNet, sizes

torch.set_num_threads(1)
SMALL = {"n_fft": 320, "hop_length": 160, "unets": 2, "channels": 8, "depth": 6}


def lived_in(module: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with running statistics and gains that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(0, 0.1, generator=generator)
    return module.eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- a second formulation: complex numbers, one loop for every sum ----------------------------


def plain_conv(conv: ComplexConv2d, x: Tensor) -> Tensor:
    """Complex [B, C, F, T] by a complex kernel, transposed or not, as the equation has it."""
    weight = torch.complex(conv.real.weight, conv.imaginary.weight)
    a, b = conv.real.bias, conv.imaginary.bias
    bias = torch.complex(a - b, a + b)
    rows, columns = weight.shape[2:]
    step = conv.real.stride[0]
    bins, frames = x.shape[2:]
    if isinstance(conv, ComplexConvTranspose2d):
        y = x.new_zeros(len(x), weight.shape[1], (bins - 1) * step + rows, frames + columns - 1)
        for i in range(rows):
            for j in range(columns):
                part = torch.einsum("bcft,co->boft", x, weight[:, :, i, j])
                y[:, :, i : i + (bins - 1) * step + 1 : step, j : j + frames] += part
    else:
        out = (bins - rows) // step + 1
        y = x.new_zeros(len(x), weight.shape[0], out, frames - columns + 1)
        for i in range(rows):
            for j in range(columns):
                seen = x[:, :, i : i + (out - 1) * step + 1 : step, j : j + frames - columns + 1]
                y += torch.einsum("bcft,oc->boft", seen, weight[:, :, i, j])
    return y + bias[:, None, None]


def plain_norm(norm: nn.Module, x: Tensor) -> Tensor:
    parts = []
    for part, layer in ((x.real, norm.real), (x.imag, norm.imaginary)):
        shape = (-1, 1, 1)
        root = (layer.running_var + layer.eps).sqrt().view(shape)
        y = (part - layer.running_mean.view(shape)) / root
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
        parts.append(torch.where(y > 0, y, 0.01 * y))
    return torch.complex(*parts)


def plain_fsmn(layer: FSMN, u: Tensor) -> Tensor:
    """[N, C], element by element."""
    p = (u @ layer.inner.weight.T + layer.inner.bias).clamp_min(0) @ layer.project.weight.T
    order = layer.taps.shape[1]
    y = []
    for n in range(len(u)):
        memory = sum(layer.taps[:, k] * p[n - k] for k in range(min(order, n + 1)))
        y.append(u[n] + p[n] + memory)
    return torch.stack(y)


def plain_memory(layer: ComplexFSMN, x: Tensor, axis: str) -> Tensor:
    def real(part: FSMN, u: Tensor) -> Tensor:  # [B, C, F, T]
        u = u.permute(0, 3, 2, 1) if axis == "frequency" else u.permute(0, 2, 3, 1)
        flat = [plain_fsmn(part, sequence) for sequence in u.flatten(0, 1)]
        y = torch.stack(flat).view(u.shape)
        return y.permute(0, 3, 2, 1) if axis == "frequency" else y.permute(0, 3, 1, 2)

    a, b = layer.real, layer.imaginary
    return torch.complex(real(a, x.real) - real(b, x.imag), real(a, x.imag) + real(b, x.real))


def plain_gates(layer: SqueezeExcite, x: Tensor) -> Tensor:
    zr, zi = x.real.mean((2, 3)), x.imag.mean((2, 3))
    a, b = (lambda z, g=g: torch.sigmoid(g(z)) for g in (layer.real, layer.imaginary))
    gr, gi = a(zr) - b(zi), a(zi) + b(zr)
    return torch.complex(x.real * gr[..., None, None], x.imag * gi[..., None, None])


def plain_unet(unet: UNet, x: Tensor) -> Tensor:
    """Complex [B, 1, F, T]; published layout with squeeze-excite."""
    skips = []
    for i, encoder in enumerate(unet.encoders):
        if i > 0:
            x = plain_memory(unet.before[str(i)], x, "frequency")
        x = plain_norm(encoder.norm, plain_conv(encoder.conv, nn.functional.pad(x, (1, 1))))
        skips.append(plain_gates(unet.skip_attention[str(i)], x) if i < unet.depth - 1 else x)
    for memory in unet.memories:
        x = plain_memory(memory, x, "time")
    for j, decoder in enumerate(unet.decoders):
        x = plain_norm(decoder.norm, plain_conv(decoder.conv, x)[..., 1:-1])
        if j == unet.depth - 1:
            break
        x = plain_memory(unet.after[str(j)], x, "frequency")
        if j < unet.depth - 2:
            x = plain_gates(unet.attention[str(j)], x)
        x = torch.cat([x, skips[unet.depth - 2 - j]], 1)
    return plain_conv(unet.last, x)


def test_the_mask_is_that_of_the_equations() -> None:
    torch.manual_seed(0)
    model = lived_in(FRCRN(n_fft=160, hop_length=80, channels=8, depth=5)).double()
    spectrum = torch.randn(2, 81, 6, dtype=torch.complex128)
    with torch.no_grad():
        found = model.mask(spectrum)
        first = plain_unet(model.unets[0], spectrum[:, None])
        second = plain_unet(model.unets[1], first)  # of what the first gave, before its tanh
    expected = sum(torch.complex(u.real.tanh(), u.imag.tanh()) for u in (first, second))[:, 0]
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    single = model.float().mask(spectrum.to(torch.complex64))
    torch.testing.assert_close(single.to(torch.complex128), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [Down(3, 5, 5, widened=2), Up(3, 5, 6, widened=1)])
def test_the_folded_norm_is_the_norm(step: nn.Module) -> None:
    torch.manual_seed(1)
    lived_in(step)
    z = torch.randn(2, 4, 3, 20, 10)
    folded = step(z)
    if isinstance(step, Down):
        z = nn.functional.pad(z, (1, 1, step.low, step.high))
    normed = step.norm(step.conv(z))
    torch.testing.assert_close(folded, nn.functional.leaky_relu(normed), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bins", [3, 20, 79, 90])
def test_a_long_filter_is_the_convolution(bins: int) -> None:
    torch.manual_seed(0)
    p, taps = torch.randn(2, 3, bins, 4), torch.randn(3, 20)
    expected = torch.stack([
        sum(taps[:, k, None] * p[:, :, f - k] for k in range(min(20, f + 1))) for f in range(bins)
    ], 2)
    torch.testing.assert_close(along_frequency(p, taps), expected, rtol=0, atol=1e-5)


def test_the_real_memory() -> None:
    torch.manual_seed(0)
    layer, u = FSMN(6, order=4), torch.randn(2, 30, 6)
    expected = torch.stack([plain_fsmn(layer, sequence) for sequence in u])
    torch.testing.assert_close(layer(u), expected, rtol=0, atol=1e-6)


def test_block_attention_by_hand() -> None:
    torch.manual_seed(0)
    layer = BlockAttention(8)
    x = torch.randn(2, 8, 12, 10, dtype=torch.complex64)

    def gates(g: nn.Module, part: Tensor) -> Tensor:
        return torch.sigmoid(g(part.mean((2, 3))) + g(part.amax((2, 3))))

    a, b = layer.real, layer.imaginary
    gr = gates(a, x.real) - gates(b, x.imag)
    gi = gates(a, x.imag) + gates(b, x.real)
    y = torch.complex(x.real * gr[..., None, None], x.imag * gi[..., None, None])
    maps = torch.complex(
        torch.stack([y.real.mean(1), y.real.amax(1)], 1),
        torch.stack([y.imag.mean(1), y.imag.amax(1)], 1),
    )
    s = plain_conv(layer.spatial, nn.functional.pad(maps, (3, 3, 3, 3)))
    expected = torch.complex(y.real * s.real.sigmoid(), y.imag * s.imag.sigmoid())
    torch.testing.assert_close(to_complex(layer(to_parts(x))), expected, rtol=0, atol=1e-5)


# ---- sizes ------------------------------------------------------------------------------------


def test_the_published_counts() -> None:
    with torch.device("meta"):
        assert count(FRCRN(spare=True)) == 13_141_844
        assert count(FRCRN(unets=1, spare=True)) == 6_570_922
        assert count(FRCRN(spare=True)) - count(FRCRN()) == 317_568
    for preset, expected in (("small", 713_924), ("tiny", 95_158), ("released", 13_141_844)):
        assert FRCRNEnhancer.from_preset(preset).parameter_count() == expected


def test_the_published_sizes() -> None:
    assert sizes(321, 7) == (321, 159, 78, 37, 17, 7, 2, 1)
    unet = UNet(321, 8)
    assert unet.kernels == (5, 5, 5, 5, 5, 5, 2)
    assert [d.conv.kernel for d in unet.decoders] == [2, 5, 5, 5, 6, 5, 5]
    narrow = UNet(161, 8, 6)
    assert narrow.kernels == (5, 5, 5, 5, 5, 2)
    assert [d.conv.kernel for d in narrow.decoders] == [2, 5, 5, 6, 5, 5]
    z, frames = torch.randn(2, 1, 1, 321, 4), []
    for encoder in unet.encoders:
        z = encoder(z)
        frames.append(z.shape[-2:])
    assert frames == [(f, 5 + i) for i, f in enumerate(unet.sizes[1:])]
    with pytest.raises(ConfigError, match="depth = 8"):
        UNet(321, 8, 8)


def test_the_ablation_has_as_many_parameters() -> None:
    with torch.device("meta"):
        for channels, depth, bins, bottleneck in (
            (16, 6, 161, "fsmn"), (128, 7, 321, "fsmn"), (16, 3, 161, "none"),
        ):
            ours, wide, none = (
                count(UNet(bins, channels, depth, bottleneck=bottleneck, recurrence=recurrence))
                for recurrence in ("fsmn", "wide", "none")
            )
            assert abs(wide / ours - 1) < 0.02
            assert none < 0.9 * ours
    assert UNet(161, 8, 6, recurrence="wide")(torch.randn(2, 1, 1, 161, 5)).shape[-2:] == (161, 5)


def test_spare_modules_change_nothing_and_learn_nothing() -> None:
    torch.manual_seed(0)
    whole = UNet(161, 8, 6, spare=True)
    lean = UNet(161, 8, 6)
    lean.load_state_dict(whole.state_dict(), strict=False)
    z = torch.randn(2, 2, 1, 161, 5)
    torch.testing.assert_close(whole(z), lean(z))
    whole(z).square().mean().backward()
    unused = {n for n, p in whole.named_parameters() if p.grad is None}
    assert unused == set(dict(whole.named_parameters())) - set(dict(lean.named_parameters()))


# ---- waves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 159, 320, 4_001])
def test_a_mask_of_one_gives_the_input_to_the_last_sample(length: int) -> None:
    model = FRCRN(**SMALL).eval()
    model.mask = lambda spectrum, frames=None: torch.ones_like(spectrum)  # type: ignore[method-assign]
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("more", [
    {}, {"attention": "ccbam", "unets": 1}, {"cumulative": True, "lookahead": False},
    {"attention": "ccbam", "cumulative": True}, {"recurrence": "wide", "attention": "none"},
], ids=str)
def test_a_padded_batch_gives_what_each_recording_gives_alone(more: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = lived_in(FRCRN(**SMALL | more))
    lengths = torch.tensor([4_000, 2_111, 170])
    x = torch.randn(3, 4_000)
    with torch.no_grad():
        together = model(x, lengths)
        for item, n in enumerate(lengths.tolist()):
            alone = model(x[item : item + 1, :n])[0]
            torch.testing.assert_close(together[item, :n], alone, rtol=0, atol=1e-5)
            assert not together[item, n:].any()
        assert (model(x)[1] - together[1]).abs().max() > 1e-3  # what follows does count otherwise


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("more", [
    {}, {"attention": "ccbam", "unets": 1}, {"attention": "none", "recurrence": "wide"},
    {"depth": 3, "hop_length": 96, "win_length": 256},
], ids=str)
def test_a_stream_is_the_whole(lookahead: bool, more: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = lived_in(FRCRN(**SMALL | {"cumulative": True, "lookahead": lookahead} | more))
    streaming = StreamingFRCRN(model)
    depth, hop = model.unets[0].depth, model.frames.hop_length
    assert streaming.latency == model.frames.win_length + (
        lookahead * len(model.unets) * depth * hop
    )
    rng = np.random.default_rng(0)
    for length in (5, 3_333):
        x = torch.randn(2, length)
        state, pieces, at, late = streaming.start(2), [], 0, 0
        while at < length:
            step = int(rng.choice([0, 1, 50, 160, 700]))
            out, state = streaming.push(x[:, at : at + step], state)
            pieces.append(out)
            at = min(length, at + step)
            late = max(late, at - sum(p.shape[-1] for p in pieces))
        assert late < streaming.latency
        pieces.append(streaming.finish(state))
        with torch.no_grad():
            torch.testing.assert_close(torch.cat(pieces, -1), model(x), rtol=0, atol=1e-5)


def test_causal_means_that_later_samples_change_nothing() -> None:
    torch.manual_seed(0)
    model = lived_in(FRCRN(**SMALL, cumulative=True, lookahead=False))
    x = torch.randn(1, 4_000)
    changed = x.clone()
    changed[:, 2_000:] += torch.randn(1, 2_000)
    with torch.no_grad():
        a, b = model(x), model(changed)
    sure = 2_000 - model.frames.win_length
    torch.testing.assert_close(a[:, :sure], b[:, :sure], rtol=0, atol=1e-6)
    assert (a - b)[:, 2_000:].abs().max() > 1e-2


def test_what_pools_over_everything_is_not_streamed() -> None:
    with pytest.raises(ConfigError, match="can't be streamed"):
        StreamingFRCRN(FRCRN(**SMALL).eval())
    with pytest.raises(ConfigError, match="training mode"):
        StreamingFRCRN(FRCRN(**SMALL, cumulative=True))


def test_wrong_batches_are_refused() -> None:
    model = FRCRN(**SMALL).eval()
    with pytest.raises(DataError, match="shape"):
        model(torch.zeros(100))
    with pytest.raises(DataError, match="shape"):
        model(torch.zeros(2, 0))
    with pytest.raises(DataError, match="lengths"):
        model(torch.zeros(2, 100), torch.tensor([100, 101]))


# ---- the system -------------------------------------------------------------------------------


def tones(seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(6_000) / 8_000
    clean = 0.2 * sum(torch.sin(2 * torch.pi * (140 + 10 * seed) * k * time) / k for k in (1, 2, 3))
    return Example(clean + 0.1 * torch.randn(6_000, generator=generator), clean)


def test_the_loss_is_the_published_one() -> None:
    """Each term again from the equations, with the published factor 2 F = 322."""
    torch.manual_seed(0)
    system = FRCRNEnhancer.from_preset("smoke", channels=8)
    batch = Example(torch.stack([tones(0).input, tones(1).input]),
                    torch.stack([tones(0).target, tones(1).target]))
    loss, values = system.objective(system.network, batch)
    noisy, clean = batch.input, batch.target
    scale = []
    for x in noisy:
        active = x[x.square() > x.square().mean()]
        scale.append(10 ** (-25 / 20) / active.square().mean().sqrt())
    scale = torch.stack(scale)[:, None]
    wave, mask, Y = system.network(scale * noisy, whole=True)
    S = system.network.frames(scale * clean)
    power = Y.abs().square() + 1e-8
    total = 0.0
    for estimate, target in (
        (mask.real, (S.real * Y.real + S.imag * Y.imag) / power),
        (mask.imag, (S.imag * Y.real - S.real * Y.imag) / power),
    ):
        target = target.clone()
        target[target > 2] = 1
        target[target < -2] = -1
        total = total + 322 * (estimate - target).square().mean()
    for y, s in zip(wave, scale * clean, strict=True):
        projected = (y @ s) / (s @ s) * s
        ratio = projected.square().sum() / (y - projected).square().sum()
        total = total - 10 * torch.log10(ratio) / 2
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-3)
    assert set(values) == {"mask_error", "si_snr"}


def test_the_joint_loss_falls() -> None:
    system = FRCRNEnhancer.from_preset("smoke", channels=8, steps=25)
    pairs = Fixed([tones(i) for i in range(4)], 8_000)
    batch = Example(torch.stack([p.input for p in pairs]), torch.stack([p.target for p in pairs]))
    before = system.objective(system.network.train(), batch)[0].item()
    system.fit(Data(train=pairs), Budget(steps=25))
    after = system.objective(system.network.train(), batch)[0].item()
    assert after < 0.8 * before


def test_silence_padding_and_loudness() -> None:
    system = FRCRNEnhancer.from_preset("smoke", channels=8)
    lived_in(system.network)
    assert not system.enhance(np.zeros(3_000, np.float32)).any()
    x = tones(3).input.numpy()
    y = system.enhance(x)
    np.testing.assert_allclose(system.enhance(x / 8), y / 8, atol=1e-6)
    np.testing.assert_allclose(system.enhance(np.pad(x, (0, 9_000)))[: len(x)], y, atol=1e-5)
    assert system.enhance(x[:30]).shape == (30,)
    pcm = np.round(x * 32_767).astype(np.int16)
    np.testing.assert_allclose(system.enhance(pcm), y, atol=1e-3)
    stereo = system.enhance(np.stack([x, x[::-1]]))
    np.testing.assert_allclose(stereo[0], y, atol=1e-6)


def test_long_recordings_are_cut_as_published() -> None:
    config = FRCRNEnhancer.configure("released")
    assert config.sizes() == (16_000, 12_000)
    assert config.fade == "centre"
    system = FRCRNEnhancer.from_preset("smoke", channels=8, window=1.0, overlap=0.25, fade="centre")
    lived_in(system.network)
    x = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
    y = system.enhance(x)
    expected = system.process(x[None, 6_000:14_000])[0].detach()
    torch.testing.assert_close(y[7_000:13_000], expected[1_000:7_000], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("wave", "text"), [
    (np.zeros(0, np.float32), "one sample or more"),
    (np.array([0.0, np.nan] * 50, np.float32), "nan at sample 1"),
    (np.array([0.0, np.inf] * 50, np.float32), "inf at sample 1"),
    (np.zeros((2, 3, 400), np.float32), "shape"),
])
def test_bad_waves_are_refused(wave: np.ndarray, text: str) -> None:
    with pytest.raises(DataError, match=text):
        FRCRNEnhancer.from_preset("smoke", channels=8).enhance(wave)


def test_a_wider_band_is_said_to_be_lost() -> None:
    system = FRCRNEnhancer.from_preset("smoke", channels=8)
    with pytest.warns(PassbandWarning, match="nothing above 4000 Hz"):
        assert system.enhance(np.zeros(4_800, np.float32), sample_rate=48_000).shape == (4_800,)


@pytest.mark.parametrize(("fields", "text"), [
    ({"win_length": 1_000}, "n_fft"), ({"hop_length": 200}, "half"), ({"depth": 9}, "depth = 9"),
])
def test_sizes_that_do_not_fit(fields: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        FRCRNEnhancer.configure("tiny", **fields)


# ---- released weights -------------------------------------------------------------------------


def their_names(unets: int = 2) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the released state dict, written out from its modules."""
    found: list[tuple[str, tuple[int, ...]]] = []
    two = ("re", "im")

    def memory(name: str, layers: tuple[str, ...]) -> None:
        for layer in layers:
            for part in two:
                base = f"{name}.fsmn_{part}_{layer}"
                found.extend([
                    (f"{base}.linear.weight", (128, 128)), (f"{base}.linear.bias", (128,)),
                    (f"{base}.project.weight", (128, 128)),
                    (f"{base}.conv1.weight", (128, 1, 20, 1)),
                ])

    def norm(name: str, size: int) -> None:
        for part in two:
            found.extend([
                (f"{name}.bn_{part}.{key}", (size,))
                for key in ("weight", "bias", "running_mean", "running_var")
            ] + [(f"{name}.bn_{part}.num_batches_tracked", ())])

    def gates(name: str) -> None:
        for part in ("r", "i"):
            found.extend([
                (f"{name}.fc_{part}.0.weight", (16, 128)), (f"{name}.fc_{part}.0.bias", (16,)),
                (f"{name}.fc_{part}.2.weight", (128, 16)), (f"{name}.fc_{part}.2.bias", (128,)),
            ])

    for unet in ("unet", "unet2")[:unets]:
        memory(f"{unet}.fsmn", ("L1", "L2"))
        for i, k in enumerate((5, 5, 5, 5, 5, 5, 2)):
            memory(f"{unet}.fsmn_enc{i}", ("L1",))
            for part in two:
                base = f"{unet}.encoder{i}.conv.conv_{part}"
                found.append((f"{base}.weight", (128, 128 if i else 1, k, 2)))
                found.append((f"{base}.bias", (128,)))
            norm(f"{unet}.encoder{i}.bn", 128)
            gates(f"{unet}.se_layer_enc{i}")
        for j, k in enumerate((2, 5, 5, 5, 6, 5, 5)):
            memory(f"{unet}.fsmn_dec{j}", ("L1",))
            out = 128 if j < 6 else 1
            for part in two:
                base = f"{unet}.decoder{j}.transconv.tconv_{part}"
                found.append((f"{base}.weight", (256 if j else 128, out, k, 2)))
                found.append((f"{base}.bias", (out,)))
            norm(f"{unet}.decoder{j}.bn", out)
            if j < 6:
                gates(f"{unet}.se_layer_dec{j}")
        for part in two:
            found.append((f"{unet}.linear.conv_{part}.weight", (1, 1, 1, 1)))
            found.append((f"{unet}.linear.conv_{part}.bias", (1,)))
        found.append((f"{unet}.encoders.0.conv.conv_re.bias", (128,)))  # listed twice, as theirs
    found.append(("stft.weight", (642, 1, 640)))
    return found


def test_every_released_name_has_its_place(tmp_path) -> None:
    torch.manual_seed(0)
    theirs = {
        f"model.{name}": torch.randn(shape).abs() if shape else torch.tensor(3)
        for name, shape in their_names()
    }
    ours = renamed(theirs)
    with torch.device("meta"):
        wanted = FRCRN(spare=True).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in wanted.items()}
    taps = theirs["model.unet2.fsmn_dec1.fsmn_im_L1.conv1.weight"]
    torch.testing.assert_close(ours["unets.1.after.1.imaginary.taps"][:, 0], taps[:, 0, 19, 0])

    torch.save({"model": theirs}, tmp_path / "best.pt")
    system = FRCRNEnhancer.from_published(tmp_path / "best.pt")
    weight = system.network.state_dict()["unets.0.decoders.4.conv.real.weight"]
    assert torch.equal(weight, theirs["model.unet.decoder4.transconv.tconv_re.weight"])
    del theirs["model.unet.linear.conv_re.bias"]
    torch.save(theirs, tmp_path / "less.pt")
    with pytest.raises(CheckpointError, match=r"unets\.0\.last\.real\.bias"):
        FRCRNEnhancer.from_published(tmp_path / "less.pt")
    (tmp_path / "none.pt").write_bytes(b"text")
    with pytest.raises(CheckpointError, match="can't be read"):
        FRCRNEnhancer.from_published(tmp_path / "none.pt")


# ---- the sounds of the claim ------------------------------------------------------------------


def test_a_low_partial_decides() -> None:
    """By the spectrum of each slot: high tones are wanted exactly where the low one is 150 Hz."""
    pairs = Harmonics(count=6, seed=3)
    decided = set()
    for noisy, clean in pairs:
        for start, stop in pairwise(range(0, RATE + 1, SLOT)):
            given, wanted = (np.abs(np.fft.rfft(x[start:stop])) ** 2 for x in (noisy, clean))
            pitch = np.argmax(given[:60]) * RATE / SLOT
            voice = abs(pitch - LOW[0]) < abs(pitch - LOW[1])
            share = wanted[200:].sum() / given[200:].sum()
            assert share == pytest.approx(float(voice), abs=0.02)
            assert given[200:].sum() > 0.2 * given[:60].sum()
            decided.add(bool(voice))
    assert decided == {True, False}
    assert torch.equal(pairs[2].input, Harmonics(6, 3)[2].input)
    assert not torch.equal(pairs[2].input, Harmonics(6, 4)[2].input)

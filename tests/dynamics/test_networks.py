"""Networks of the family: sizes of the papers, features and head, pixels on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from passband.dynamics.augment import crop_flip
from passband.dynamics.inception import Branches, Residual, inception_body
from passband.dynamics.networks import (
    NETWORKS,
    BasicBlock,
    PreActBlock,
    build,
    count,
    normalisation,
)
from passband.dynamics.published_weights import load_published, published_names
from passband.errors import CheckpointError, ConfigError, UnknownNameError


@pytest.mark.parametrize(("name", "shape", "classes", "options", "parameters"), [
    ("resnet34", (3, 32, 32), 10, {}, 21_282_122),
    ("resnet34", (3, 32, 32), 100, {}, 21_328_292),
    ("preact_resnet18", (3, 32, 32), 10, {}, 11_171_274),
    ("preact_resnet18", (3, 32, 32), 100, {}, 11_217_444),
    ("resnet34", (3, 224, 224), 1000, {}, 21_797_672),
    ("resnet50", (3, 224, 224), 1000, {}, 25_557_032),
    ("resnet50", (3, 32, 32), 10, {}, 23_520_842),
    ("wide_resnet28", (3, 32, 32), 10, {}, 36_479_194),
    ("inception_resnet_v2", (3, 227, 227), 50, {}, 54_306_464 + 50 * 1537),
    ("mlp", (1, 8, 8), 10, {}, 301_066),
    ("mlp", (64,), 10, {"hidden": (256, 256)}, 85_002),
    ("mlp", (5,), 2, {"hidden": ()}, 12),
])
def test_sizes_are_those_of_the_papers(name, shape, classes, options, parameters) -> None:
    with torch.device("meta"):
        assert count(build(name, shape, classes, **options)) == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_a_linear_head_on_features(name: str) -> None:
    inception = name == "inception_resnet_v2"
    pixels = 75 if inception else 16
    options = {"width": 4} if "resnet" in name and not inception else {}
    model = build(name, (3, pixels, pixels), 7, dropout=0.3, **options).eval()
    x = torch.randn(2, 3, pixels, pixels)
    features = model.features(x)
    assert features.dim() == 2 and isinstance(model.head, nn.Linear)
    torch.testing.assert_close(model(x), features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("name", ["resnet34", "preact_resnet18"])
def test_small_images_are_pooled_at_four_pixels(name: str) -> None:
    model, sizes = build(name, (3, 32, 32), 10, width=4), []
    pool = next(m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    pool.register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape)))
    model(torch.randn(2, 3, 32, 32))
    assert sizes == [(2, 32, 4, 4)]


@pytest.mark.parametrize(("name", "kind", "depths"), [
    ("resnet34", "basic", [3, 4, 6, 3]), ("resnet50", "bottleneck", [3, 4, 6, 3]),
])
def test_large_images_as_another_library_has_them(name, kind, depths) -> None:
    """Logits of transformers' ResNet on the same weights, which it names in its own way."""
    library = pytest.importorskip("transformers")
    sizes = [8, 16, 32, 64] if kind == "basic" else [32, 64, 128, 256]
    torch.manual_seed(0)
    theirs = library.ResNetForImageClassification(library.ResNetConfig(
        embedding_size=8, hidden_sizes=sizes, depths=depths, layer_type=kind, num_labels=7,
    )).eval()
    ours = build(name, (3, 128, 128), 7, width=8).eval()
    # Both list the layers in the order of the forward pass, but for the projections.
    def ordered(model: nn.Module, projection: str) -> list[torch.Tensor]:
        state = {n: t for n, t in model.state_dict().items() if "num_batches" not in n}
        first = [n for n in state if projection in n]
        return [state[n] for n in (*first, *(n for n in state if projection not in n))]

    with torch.no_grad():
        for a, b in zip(
            ordered(ours, "shortcut"), ordered(theirs, ".shortcut."), strict=True
        ):
            assert a.shape == b.shape
            a.copy_(b + 0.1 * torch.rand_like(b))
            b.copy_(a)
        x = torch.randn(2, 3, 128, 128)
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=1e-4, atol=1e-4)


def test_inception_halves_where_it_should() -> None:
    """Pixels and channels of the paper's figures, and a last module without ReLU."""
    body, sizes = inception_body(3).eval(), []
    for part in body:
        if isinstance(part, Branches):
            part.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[1:])))
    with torch.no_grad():
        body(torch.rand(1, 3, 299, 299))
    assert sizes == (
        [(320, 35, 35)] * 11 + [(1088, 17, 17)] * 21 + [(2080, 8, 8)] * 11
    )
    residual = [m for m in body if isinstance(m, Residual)]
    assert [m.act for m in residual] == [True] * 39 + [False]
    x = torch.randn(1, 320, 2, 2)
    nn.init.zeros_(residual[0].project.weight), nn.init.zeros_(residual[0].project.bias)
    torch.testing.assert_close(residual[0](x), x.relu())
    with pytest.raises(ConfigError, match="at least 75 pixels"):
        build("inception_resnet_v2", (3, 74, 80), 5)


def test_frozen_norms_keep_their_statistics_and_learn_their_gains() -> None:
    model = build("resnet34", (3, 16, 16), 5, width=4)
    model.frozen_norm = True
    before = {n: t.clone() for n, t in model.state_dict().items() if "running" in n}
    model.train()
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(not m.training and m.weight.grad is not None for m in norms) and model.training


def published(
    model: nn.Module, path: Path, change: Callable[[dict], None] = lambda _: None
) -> Path:
    """A file of torchvision's names, from random weights, as timm writes it."""
    tensors = {
        theirs: torch.randn(model.state_dict()[own].shape)
        for own, theirs in published_names(model).items() if "num_batches" not in theirs
    }
    change(tensors)
    save_file(tensors, path)
    return path


def test_published_weights_go_where_they_belong(tmp_path: Path) -> None:
    model = build("resnet50", (3, 128, 128), 5, width=4)
    wanted = {
        "conv1.weight": "body.0.weight", "bn1.running_mean": "body.1.running_mean",
        "layer1.0.conv1.weight": "body.4.conv1.weight",
        "layer1.0.downsample.0.weight": "body.4.shortcut.0.weight",
        "layer1.0.downsample.1.bias": "body.4.shortcut.1.bias",
        "layer2.3.bn3.running_var": "body.10.norm3.running_var",
        "layer4.2.conv3.weight": "body.19.conv3.weight", "fc.bias": "head.bias",
    }
    names = published_names(model)
    assert all(names[own] == theirs for theirs, own in wanted.items())
    path = published(model, tmp_path / "w.safetensors")
    load_published(model, path)
    found = load_file(path)
    state = model.state_dict()
    assert all(torch.equal(state[own], found[theirs]) for theirs, own in wanted.items())
    other = build("resnet50", (3, 128, 128), 3, width=4)
    drawn = other.head.weight.clone()
    load_published(other, path)  # of other classes
    assert torch.equal(other.head.weight, drawn)
    assert torch.equal(other.state_dict()["body.19.conv3.weight"], found["layer4.2.conv3.weight"])


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("layer3.1.conv2.weight"), "no layer3.1.conv2.weight"),
    (lambda t: t.update({"layer3.6.conv1.weight": torch.zeros(1)}), "no place, such as layer3.6"),
    (lambda t: t.update({"conv1.weight": torch.zeros(4, 1, 7, 7)}), "three colours"),
])
def test_published_weights_that_do_not_fit(tmp_path: Path, change, message) -> None:
    model = build("resnet50", (3, 128, 128), 5, width=4)
    with pytest.raises(CheckpointError, match=message):
        load_published(model, published(model, tmp_path / "w.safetensors", change))


def test_published_weights_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"cos\nsystem")
    model = build("resnet50", (3, 128, 128), 5, width=4)
    for path in ("w.pth", "missing.safetensors"):
        with pytest.raises(CheckpointError, match="can't be read"):
            load_published(model, tmp_path / path)
    with pytest.raises(ConfigError, match="no published weights fit a MLP"):
        load_published(build("mlp", (4,), 2), tmp_path / "w.pth")


def test_the_preactivation_network_has_no_last_norm() -> None:
    """One norm for the stem, two a block: the one before pooling is missing, as in the papers."""
    model = build("preact_resnet18", (3, 32, 32), 10, width=4)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 1 + 2 * 8
    blocks = [m for m in model.modules() if isinstance(m, PreActBlock)]
    assert [b.shortcut is not None for b in blocks] == [False, False] + [True, False] * 3


def test_blocks_without_their_convolutions_are_shortcuts() -> None:
    x = torch.randn(2, 4, 6, 6)
    for block, expected in ((PreActBlock(4, 4, 1), x), (BasicBlock(4, 4, 1), x.relu())):
        nn.init.zeros_(block.conv2.weight)
        torch.testing.assert_close(block.eval()(x), expected)


def test_the_small_conv_net_against_its_layers() -> None:
    model = build("conv", (1, 8, 8), 10, channels=(16, 32), pool="flat")
    assert count(model) == (16 * 9 + 16) + (32 * 16 * 9 + 32) + (32 * 4 * 4 * 10 + 10)
    x, (first, second) = torch.randn(3, 1, 8, 8), (
        m for m in model.modules() if isinstance(m, nn.Conv2d)
    )
    by_hand = second(nn.functional.max_pool2d(first(x).relu(), 2)).relu().flatten(1)
    torch.testing.assert_close(model.features(x), by_hand)


def test_wrong_names_shapes_and_options_are_answered() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resnet34'"):
        build("resnet-34", (3, 32, 32), 10)
    with pytest.raises(ConfigError, match="network='mlp' takes any shape"):
        build("conv", (64,), 10)
    with pytest.raises(ConfigError, match="5 convolutions on images of 8x8"):
        build("conv", (1, 8, 8), 10, channels=(4,) * 5)
    with pytest.raises(ConfigError, match="depth"):
        build("mlp", (64,), 10, depth=3)


def test_normalised_data_have_mean_nought_and_deviation_one() -> None:
    torch.manual_seed(0)
    for x in (5 + 3 * torch.randn(50, 2, 4, 4), torch.randn(50, 6) * torch.arange(6)):
        mean, std = normalisation(x)
        y = (x - mean) / std
        y = y.movedim(1, 0).flatten(1)
        assert float(y.mean(1).abs().max()) < 1e-5
        moved = y.std(1, correction=0)
        assert ((moved - 1).abs() < 1e-4).logical_or(moved == 0).all()


def test_an_augmented_image_is_a_shifted_one_or_its_mirror_image() -> None:
    x = torch.arange(1.0, 26).reshape(1, 1, 5, 5).expand(200, 1, 5, 5)
    found = crop_flip(x, fill=-7.0, pad=1, generator=torch.Generator().manual_seed(0))
    padded = nn.functional.pad(x[0, 0], (1, 1, 1, 1), value=-7.0)
    windows = [padded[i : i + 5, j : j + 5] for i in range(3) for j in range(3)]
    allowed = [w for window in windows for w in (window, window.flip(1))]
    hits = [next(k for k, w in enumerate(allowed) if torch.equal(y[0], w)) for y in found]
    assert set(hits) == set(range(18))  # each of them comes up in 200 draws
    with pytest.raises(ConfigError, match="augment='none'"):
        crop_flip(torch.zeros(2, 5))

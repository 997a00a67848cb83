"""Labelled data: checked, cut, relabelled; the digits; users' folders, arrays and tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from passband.data.labelled import digits as labelled_digits
from passband.data.labelled.inputs import read_images, read_inputs
from passband.data.labelled.labelled import Labelled, Parts, joined
from passband.data.labelled.readers import read, read_whole, split
from passband.errors import DataError, UnknownNameError

X, Y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
NAMES = ("a", "b", "c")


def small(**more) -> Labelled:
    return Labelled(X, Y, NAMES, **more)


# ---- the data set --------------------------------------------------------------------------------


def test_a_subset_takes_everything_along() -> None:
    data = small(truth=[0, 1, 2, 0, 2, 2], groups=[0, 0, 0, 1, 1, 1], names=tuple("uvwxyz"))
    for chosen in (torch.tensor([4, 0]), [4, 0]):
        part = data.subset(chosen)
        assert torch.equal(part.x, X[[4, 0]]) and part.y.tolist() == [1, 0]
        assert part.wrong.tolist() == [True, False] and part.names == ("y", "u")
        assert part.groups.tolist() == [1, 0] and part.group_names == ("0", "1")
    for mask in (data.wrong, data.wrong.numpy(), data.wrong.tolist()):
        assert data.subset(mask).names == ("y",)
    assert [len(g) for g in data.by_group()] == [3, 3]
    assert torch.equal(joined(data.by_group()).x, X)


def test_new_labels_leave_the_truth() -> None:
    once = small().relabelled([1, 1, 2, 0, 1, 2])
    twice = once.relabelled([1, 1, 1, 0, 1, 2])
    assert once.truth.tolist() == twice.truth.tolist() == Y.tolist()
    assert twice.wrong.tolist() == [True, False, True, False, False, False]
    assert not small().wrong.any() and small().truth is None


def test_a_fingerprint_tells_data_sets_apart() -> None:
    prints = {d.fingerprint for d in (
        small(), small(truth=Y), small(groups=Y), small(names=tuple("uvwxyz")),
        Labelled(X + 1, Y, NAMES), Labelled(X, Y.flip(0), NAMES), Labelled(X, Y, ("a", "b", "d")),
    )}
    assert len(prints) == 7 and small().fingerprint in prints


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Labelled(X, Y[:5], NAMES), r"labels of shape \[5\] for 6"),
    (lambda: Labelled(X, Y, ("a", "b")), "labels from 0 to 2"),
    (lambda: Labelled(X, Y, ("a", "a", "b")), "different names"),
    (lambda: Labelled(X, Y * 0, ("a",)), "classes"),
    (lambda: Labelled(X, Y + 0.5, NAMES), "whole numbers"),
    (lambda: Labelled(X[:0], Y[:0], NAMES), "shape"),
    (lambda: Labelled(X[:, 0], Y, NAMES), "shape"),
    (lambda: Labelled(X.log() * 0, Y, NAMES), "1 of 6 examples .* first at 0"),
    (lambda: small(groups=[0, 1, 2, 3, 4, -1]), "groups from -1"),
    (lambda: small(names=("u",)), "1 names for 6"),
])
def test_parts_that_do_not_fit_are_refused(make, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()


# ---- digits --------------------------------------------------------------------------------------


def overlap(a: Labelled, b: Labelled) -> int:
    rows = {row.numpy().tobytes() for row in a.x}
    return sum(row.numpy().tobytes() in rows for row in b.x)


@pytest.mark.parametrize("make", [
    labelled_digits.clean, labelled_digits.symmetric_noise, labelled_digits.pair_noise,
    labelled_digits.few,
])
def test_the_digits_are_split_once_and_their_test_is_clean(make) -> None:
    parts: Parts = make(seed=3)
    assert overlap(parts.train, parts.test) == overlap(parts.train, parts.valid) == 0
    assert overlap(parts.valid, parts.test) == 0
    assert not parts.test.wrong.any()
    assert make(seed=3).fingerprint == parts.fingerprint
    clean = labelled_digits.clean()
    known: dict[bytes, int] = {}
    for part in (clean.train, clean.valid, clean.test):
        known |= {row.numpy().tobytes(): int(y) for row, y in zip(part.x, part.y, strict=True)}
    for part in (parts.train, parts.valid, parts.test):
        assert [known[r.numpy().tobytes()] for r in part.x] == part.right.tolist()


def test_noise_is_on_validation_too_and_depends_on_the_seed() -> None:
    one, two = labelled_digits.symmetric_noise(0), labelled_digits.symmetric_noise(1)
    for part in (one.train, one.valid):
        assert abs(float(part.wrong.double().mean()) - 0.36) < 0.07
    assert not torch.equal(one.train.y, two.train.y)
    assert torch.equal(one.train.right, two.train.right)
    pairs = labelled_digits.pair_noise(0)
    changed = {(int(a), int(b)) for a, b in zip(pairs.train.right, pairs.train.y, strict=True)}
    assert changed - {(c, c) for c in range(10)} == {(7, 1), (2, 7), (5, 6), (6, 5), (3, 8)}


def test_few_are_drawn_in_proportion_and_the_rest_is_tested() -> None:
    parts = labelled_digits.few(seed=0)
    assert len(parts.train) == 300 and len(parts.test) == 1197
    whole = torch.bincount(labelled_digits.clean().train.y) * 300 / 1197
    assert (torch.bincount(parts.train.y) - whole).abs().max() <= 1
    other = labelled_digits.few(seed=1)
    assert overlap(parts.train, other.train) < 150
    assert len(labelled_digits.clean(0, "smoke").train) == 300


# ---- a split by hash -----------------------------------------------------------------------------


def test_a_split_serves_every_class_and_depends_on_names_alone() -> None:
    y = torch.tensor([0] * 100 + [1] * 10 + [2] * 3)
    data = Labelled(torch.arange(113.0)[:, None], y, NAMES)
    keys = [f"k{i}" for i in range(113)]
    parts = split(data, keys)
    counts = [torch.bincount(p.y, minlength=3).tolist() for p in (parts.train, parts.valid,
                                                                   parts.test)]
    assert counts == [[70, 7, 1], [10, 1, 1], [20, 2, 1]]
    order = torch.randperm(113, generator=torch.Generator().manual_seed(0))
    again = split(data.subset(order), [keys[i] for i in order])
    assert set(again.test.x.ravel().tolist()) == set(parts.test.x.ravel().tolist())
    with pytest.raises(DataError, match="class 'c' has 2 different"):
        split(data.subset(range(112)), keys[:112])


def test_equal_rows_stay_together_even_under_two_labels(tmp_path: Path) -> None:
    x = np.repeat(np.random.default_rng(0).random((60, 4)), 3, axis=0)
    y = np.arange(180) % 2  # every row has both labels
    np.savez(tmp_path / "d.npz", x=x, y=y)
    parts = read(tmp_path / "d.npz")
    assert overlap(parts.train, parts.test) == overlap(parts.train, parts.valid) == 0
    assert len(parts.train) + len(parts.valid) + len(parts.test) == 180


# ---- readers -------------------------------------------------------------------------------------


def write(path: Path, value: int = 128, size: tuple[int, int] = (6, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)


def pictures(root: Path, n: int = 10, mode: str = "L") -> Path:
    for k, name in enumerate(("cat", "dog")):
        for i in range(n):
            write(root / name / f"{i}.png", 10 * i + k, mode=mode)
    return root


def test_a_folder_of_classes(tmp_path: Path) -> None:
    root = pictures(tmp_path / "animals")
    write(root / ".thumbnails" / "deep" / "x.png")
    (root / "cat" / "notes.txt").write_text("no image")
    parts = read(root)
    assert parts.train.classes == ("cat", "dog") and parts.train.shape == (1, 4, 6)
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (14, 2, 4)
    assert parts.train.groups is None
    for part in (parts.train, parts.valid, parts.test):
        for x, y, name in zip(part.x, part.y, part.names, strict=True):
            kind, file = name.split("/")
            k = ("cat", "dog").index(kind)
            assert int(y) == k
            assert float(x[0, 0, 0]) == pytest.approx((10 * int(file[:-4]) + k) / 255)


def test_colours_come_first(tmp_path: Path) -> None:
    data = read_whole(pictures(tmp_path / "animals", mode="RGB"))
    assert data.shape == (3, 4, 6)
    assert not data.x[:, 1].any() and (data.x[:, 2] == 1).all()


def test_domains_around_classes(tmp_path: Path) -> None:
    for domain in ("photo", "art"):
        pictures(tmp_path / "d" / domain, n=5)
    whole = read_whole(tmp_path / "d")
    assert whole.group_names == ("art", "photo")
    assert [n.split("/")[0] for n in whole.names] == [whole.group_names[g] for g in whole.groups]
    parts = read(tmp_path / "d", unseen="art")
    assert {n.split("/")[0] for n in parts.test.names} == {"art"} and len(parts.test) == 10
    assert {n.split("/")[0] for n in parts.train.names + parts.valid.names} == {"photo"}
    assert len(parts.train) + len(parts.valid) == 10
    with pytest.raises(UnknownNameError, match="'Art'"):
        read(tmp_path / "d", unseen="Art")


def test_a_split_of_the_users_own(tmp_path: Path) -> None:
    pictures(tmp_path / "train"), pictures(tmp_path / "test", n=3)
    parts = read(tmp_path)
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (18, 2, 6)
    pictures(tmp_path / "val", n=2)
    parts = read(tmp_path)
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (20, 4, 6)
    for file in (tmp_path / "test" / "dog").iterdir():
        file.rename(file.parent.parent / "cat" / f"dog{file.name}")
    with pytest.raises(DataError, match="test: one class only"):
        read(tmp_path)


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 3), 65535 // 5, np.uint16)).save(tmp_path / "a.png")
    assert read_images([tmp_path / "a.png"]).numpy() == pytest.approx(0.2)


def test_arrays_of_any_layout(tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "d.npz"
    y = np.array(["no", "yes"] * 20)
    for x, shape in (
        (rng.random((40, 7)), (7,)), (rng.random((40, 5, 6)), (1, 5, 6)),
        (rng.random((40, 3, 5, 6)), (3, 5, 6)), (rng.random((40, 5, 6, 3)), (3, 5, 6)),
        (rng.integers(0, 256, (40, 5, 6)).astype(np.uint8), (1, 5, 6)),
    ):
        np.savez(file, x=x, y=y, domain=np.arange(40) // 20, truth=y[::-1])
        data = read_whole(file)
        assert data.shape == shape and data.classes == ("no", "yes")
        assert data.groups.tolist() == [0] * 20 + [1] * 20 and data.wrong.all()
        assert 0 <= float(data.x.min()) <= float(data.x.max()) <= 1
    np.savez(file, x=rng.random((40, 7)), y=np.arange(40) % 11)
    assert read_whole(file).classes == tuple(map(str, range(11)))  # 10 comes after 9


def test_tables_of_numbers_and_of_paths(tmp_path: Path) -> None:
    rows = [f"{i / 7},{i % 5},{'yes' if i % 2 else 'no'},d{i % 3}" for i in range(30)]
    (tmp_path / "rows.csv").write_text("\ufeffx0,x1,label,domain\n" + "\n".join(rows) + "\n\n")
    data = read_whole(tmp_path / "rows.csv")
    assert data.shape == (2,) and data.group_names == ("d0", "d1", "d2")
    np.testing.assert_allclose(data.x[:, 0].numpy(), np.arange(30) / 7, rtol=1e-6)
    assert data.y.tolist() == [i % 2 for i in range(30)]

    pictures(tmp_path / "images")
    lines = [f"images/{k}/{i}.png,{k},dog" for k in ("cat", "dog") for i in range(10)]
    (tmp_path / "paths.csv").write_text("path,label,truth\n" + "\n".join(lines))
    data = read_whole(tmp_path / "paths.csv")
    assert data.shape == (1, 4, 6) and data.names[0] == "images/cat/0.png"
    assert data.wrong.tolist() == [True] * 10 + [False] * 10


def bad_folder(tmp_path: Path, how: str) -> Path:
    root = pictures(tmp_path / how, n=4)
    if how == "sizes":
        write(root / "cat" / "large.png", size=(9, 9))
    elif how == "broken":
        (root / "cat" / "broken.png").write_bytes(b"\x89PNG but no more")
    elif how == "depths":
        write(root / "stray.png")
    elif how == "few":
        for i in (2, 3):
            (root / "dog" / f"{i}.png").unlink()
    elif how == "train-only":
        root = tmp_path / "t"
        pictures(root / "train")
    elif how == "empty":
        root = tmp_path / "nothing"
        root.mkdir()
    return root


@pytest.mark.parametrize(("how", "words"), [
    ("sizes", r"8 of 6x4, 1 of 9x9(.|\n)*resize"), ("broken", "broken.png can't be read"),
    ("depths", r"different depths, such as stray.png"), ("few", "class 'dog' has 2"),
    ("train-only", "train and test at least"), ("empty", "has no images"),
])
def test_bad_folders_are_answered(tmp_path: Path, how: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(bad_folder(tmp_path, how))


@pytest.mark.parametrize(("arrays", "words"), [
    ({"x": np.zeros((4, 2))}, "lacks y"),
    ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, r"y of shape \[3\]"),
    ({"x": np.zeros((4, 2)), "y": np.array([0.5, 1, 1, 2])}, "float64"),
    ({"x": np.zeros((4, 2)), "y": np.array([{}, 1, 2, 3], dtype=object)}, "can't be read"),
    ({"x": np.zeros(4), "y": np.arange(4)}, "shape"),
    ({"x": np.full((4, 2), np.inf), "y": np.arange(4) % 2}, "not finite"),
    ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, "one class only"),
])
def test_bad_arrays_are_answered(tmp_path: Path, arrays, words: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=words):
        read(tmp_path / "d.npz")


@pytest.mark.parametrize(("text", "words"), [
    ("x0,x1\n1,2\n", "columns x0, x1(.|\n)*label"), ("x0,label\n1\n", "row 2 has 1 cells"),
    ("x0,label\n1,a\ntwo,b\n", "row 3, column 'x0': 'two'"),
    ("x0,label\n1,a\nnan,b\n", "row 3, column 'x0'"), ("x0,label\n", "1 lines"),
    ("x0,x0,label\n1,2,a\n", "two columns 'x0'"), ("x0,label\n1,a\n2,\n", "row 3 has no label"),
    ("label\na\nb\n", "no column of numbers"), ("path,label\nnone.png,a\n", "none.png can't be"),
])
def test_bad_tables_are_answered(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read(tmp_path / "d.csv")


def test_other_files_are_answered_with_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("?")
    for name in ("d.txt", "missing"):
        with pytest.raises(DataError, match="CLASS/image"):
            read(tmp_path / name)


def test_inputs_of_another_size_say_how_to_mend_it(tmp_path: Path) -> None:
    root = pictures(tmp_path / "animals", n=3)
    x, names = read_inputs(root, (1, 4, 6))
    assert x.shape == (6, 1, 4, 6) and names[0] == "cat/0.png"
    x, _ = read_inputs(root, (3, 4, 6))
    assert torch.equal(x[:, 0], x[:, 2])
    with pytest.raises(DataError, match=r"6 of 6x4(.|\n)*all 8x8, as in training"):
        read_inputs(root, (1, 8, 8))
    with pytest.raises(DataError, match="examples of shape"):
        read_inputs(root, (64,))

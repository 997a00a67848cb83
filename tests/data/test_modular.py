"""Tables of residues: shares, splits, number theory, users' files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from passband.data.modular import (
    check_prime,
    discrete_log_order,
    known_part,
    modular_dataset,
    read_table,
)
from passband.errors import ConfigError, DataError, PassbandWarning


def test_the_paper_s_numbers():
    data = modular_dataset(97, "add", alpha=0.5, xi=0.35, seed=0)
    assert (len(data.train), len(data.corrupt), len(data.test)) == (4704, 1646, 4705)
    inverted = [modular_dataset(97, "add", 0.5, 0.35, seed).inverted for seed in range(40)]
    # 1 - xi (1 - 1/p); the standard error of 40 runs is about 0.0001
    assert np.mean(inverted) == pytest.approx(1 - 1646 / 4704 * (1 - 1 / 97), abs=5e-4)


@pytest.mark.parametrize("op", ["add", "subtract", "multiply"])
def test_labels_are_right_but_for_the_corrupted(op):
    data = modular_dataset(13, op, alpha=0.6, xi=0.3, seed=4)
    function = {"add": int.__add__, "subtract": int.__sub__, "multiply": int.__mul__}[op]
    truth = [function(m, n) % 13 for m in range(13) for n in range(13)]
    assert data.truth.tolist() == truth
    assert data.pairs.tolist() == [[m, n] for m in range(13) for n in range(13)]
    places = torch.cat([data.corrupt, data.clean, data.test])
    assert sorted(places.tolist()) == list(range(169))
    right = torch.cat([data.clean, data.test])
    assert torch.equal(data.labels[right], data.truth[right])
    assert (data.labels[data.corrupt] != data.truth[data.corrupt]).float().mean() > 0.7


def test_a_seed_is_a_data_set():
    first, same, other = (modular_dataset(13, xi=0.3, alpha=0.6, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.labels, same.labels)
    assert torch.equal(first.test, same.test)
    assert not torch.equal(first.test, other.test)


def test_a_learner_sees_pairs_and_labels_and_not_which_are_wrong():
    data = modular_dataset(13, xi=0.5, alpha=0.6)
    known = data.known
    places = known.pairs[:, 0] * 13 + known.pairs[:, 1]
    assert torch.equal(places, data.train.sort().values)
    assert torch.equal(known.labels, data.labels[places])


def test_accuracies_are_those_of_their_splits():
    data = modular_dataset(13, alpha=0.6, xi=0.4, seed=3)
    perfect, parrot = data.accuracies(data.truth), data.accuracies(data.labels)
    assert (perfect["test"], perfect["clean"], perfect["recovered"]) == (1, 1, 1)
    assert perfect["memorised"] == 0
    assert perfect["train"] == pytest.approx(data.inverted)
    assert (parrot["train"], parrot["corrupt"], parrot["recovered"]) == (1, 1, 0)
    assert "test" not in modular_dataset(13, alpha=1.0).accuracies(data.truth)


def test_functions_and_tables():
    square = modular_dataset(7, lambda m, n, p: (m * m + n) % p, alpha=0.8)
    assert square.truth.tolist() == [(m * m + n) % 7 for m in range(7) for n in range(7)]
    table = square.truth.reshape(7, 7).numpy().copy()
    table[2, 3] = -1
    given = modular_dataset(7, table, alpha=1.0)
    assert len(given.train) == 48
    assert 2 * 7 + 3 not in given.train.tolist()
    assert given.accuracies(torch.zeros(49, dtype=torch.long)).keys() >= {"train", "all"}


@pytest.mark.parametrize("p", [3, 5, 7, 31, 97])
def test_powers_of_a_primitive_root(p):
    powers = discrete_log_order(p)
    assert sorted(powers.tolist()) == list(range(1, p))
    a, b = np.random.default_rng(0).integers(0, p - 1, (2, 50))
    assert (powers[a] * powers[b] % p == powers[(a + b) % (p - 1)]).all()


def test_no_prime_no_logarithm():
    with pytest.raises(ConfigError, match="multiplication modulo 96"):
        check_prime(96)
    with pytest.raises(ConfigError, match="prime"):
        modular_dataset(9, "multiply")
    assert modular_dataset(96, "add").classes == 96


@pytest.mark.parametrize(("arguments", "error", "said"), [
    ({"p": 2}, ConfigError, "p = 2"),
    ({"p": 11, "alpha": 0.0}, ConfigError, "alpha"),
    ({"p": 11, "xi": 1.2}, ConfigError, "xi"),
    ({"p": 11, "op": "power"}, ConfigError, "op"),
    ({"p": 11, "op": lambda m, n, p: m / 2}, DataError, "whole"),
    ({"p": 11, "op": lambda m, n, p: m - n}, DataError, "from -10"),
    ({"p": 11, "op": lambda m, n, p: 0 * m}, DataError, "every label is the same"),
    ({"p": 11, "op": np.zeros((5, 5), int)}, DataError, "5 residues"),
    ({"p": 5, "op": np.zeros((5, 4), int)}, DataError, r"\[5, 4\]"),
    ({"p": 5, "op": np.full((5, 5), -1)}, DataError, "no known entry"),
    ({"p": 5, "op": np.full((5, 5), "a")}, DataError, "type"),
])
def test_what_makes_no_table(arguments, error, said):
    with pytest.raises(error, match=said):
        modular_dataset(**arguments)


def test_what_shows_no_rule_is_warned_of():
    with pytest.warns(PassbandWarning, match="never seen"):
        modular_dataset(31, alpha=0.02)
    with pytest.warns(PassbandWarning, match="random"):
        modular_dataset(11, alpha=0.6, xi=1.0)


def test_files_of_users(tmp_path):
    table = (np.arange(7)[:, None] * 2 + np.arange(7)) % 7
    np.save(tmp_path / "a.npy", table)
    assert read_table(tmp_path / "a.npy").tolist() == table.tolist()
    np.save(tmp_path / "b.npy", np.where(table == 3, np.nan, table))
    assert (read_table(tmp_path / "b.npy") == np.where(table == 3, -1, table)).all()
    lines = [",".join("?" if v == 3 else str(v) for v in row) for row in table.tolist()]
    (tmp_path / "c.csv").write_text("\n".join(lines))
    assert (read_table(tmp_path / "c.csv") == np.where(table == 3, -1, table)).all()
    known = known_part(read_table(tmp_path / "c.csv"))
    assert len(known) == 42
    assert (known.labels.numpy() == table[known.pairs[:, 0], known.pairs[:, 1]]).all()


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.csv", b"", "empty"),
    ("a.csv", b"0,1,2\n1,2\n2,0,1\n", "2 to 3 cells"),
    ("a.csv", b"m,n,q\n0,1,2\n1,2,0\n", "'m'"),
    ("a.csv", b"0,1,2\n1,2,0.5\n2,0,1\n", "whole"),
    ("a.csv", b"0,1,2\n1,-7,0\n2,0,1\n", "-7"),
    ("a.csv", b"\xff\xfe\x00", "can't be read"),
    ("a.npy", b"nothing", "can't be read"),
    ("a.xlsx", b"", "no table"),
])
def test_files_that_are_no_table(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_table(tmp_path / name)


def test_a_file_with_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="can't be read"):
        read_table(tmp_path / "a.npy")

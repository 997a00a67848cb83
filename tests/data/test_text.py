"""Corpora of the standard library, generated lines, windows, and the cache they are kept in."""

from __future__ import annotations

import ast
import json
import multiprocessing
import string

import numpy as np
import pytest
import torch

from passband.data import cache
from passband.data.packages import docstring_packages, retrieval
from passband.data.sources import bucket, installed, parse, standard_library
from passband.data.text import (
    IGNORED,
    Corpus,
    Pair,
    Windows,
    arithmetic,
    cipher,
    code,
    collate,
    decode,
    docstrings,
    encode,
    encode_pair,
    json_lines,
    part_of,
    random_windows,
)
from passband.errors import DataError

SOURCE = '''"""Module words."""
# a comment
import os  # another


class A:
    """Only words: a body that needs a statement."""


def f(x):
    """Words.

    More."""
    sign = "# no comment"  # a comment
    return sign + '"""' + x


def g(): "on one line"


def h(): "on one line"; return 1
'''


def without_docstrings(tree: ast.Module) -> str:
    """The tree of a source whose docstrings are taken out, by ast alone."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            value = getattr(first, "value", None)
            if isinstance(first, ast.Expr) and isinstance(getattr(value, "value", None), str):
                rest = node.body[1:]
                node.body = rest or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.dump(tree)


def test_docstrings_and_code_of_a_module(tmp_path):
    module = parse(tmp_path / "m.py", "m", SOURCE)
    assert [(d.kind, d.name) for d in module.docstrings] == [
        ("module", "m"), ("class", "A"), ("function", "f"), ("function", "g"), ("function", "h"),
    ]
    assert module.docstrings[2].text == "Words.\n\nMore."
    text = module.code()
    assert "a comment" not in text and "another" not in text and "# no comment" in text
    # "pass" stands before the rest of a line whose docstring was there.
    expected = ast.parse(SOURCE)
    expected.body[-1].body[0] = ast.Pass()
    assert without_docstrings(ast.parse(text)) == without_docstrings(expected)


@pytest.mark.parametrize("place", range(0, 60, 7))
def test_code_of_real_modules_keeps_the_program(place):
    name, path = standard_library()[place]
    module = parse(path, name)
    stripped = without_docstrings(ast.parse(module.code()))
    assert stripped == without_docstrings(ast.parse(module.source))


def test_other_files_are_no_modules(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "b.py").write_text("print 'of another version'\n")
    assert parse(tmp_path / "a.py", "a") is None and parse(tmp_path / "b.py", "b") is None
    assert installed("no_such_package") == []


def test_the_split_is_by_the_name_of_a_module():
    names = [name for name, _ in standard_library()]
    parts = {part: {n for n in names if part_of(n) == part} for part in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == len(set(names))
    assert 0.85 < len(parts["train"]) / len(names) < 0.95
    # The digest of a name, computed by hand: the side of a module is the same everywhere.
    import hashlib

    by_hand = hashlib.blake2b((4).to_bytes(8, "little") + b"json", digest_size=8).hexdigest()
    assert bucket("json") == int(by_hand, 16) % 100


def test_docstrings_are_in_the_sources():
    corpus, first = docstrings(60), dict(standard_library()[:60])
    trees = {n: ast.parse(p.read_text("utf-8")) for n, p in first.items() if part_of(n) == "test"}
    expected = sorted(
        "".join(
            ast.get_docstring(node) + "\n\n" for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node)
        )
        for tree in trees.values()
    )
    assert sorted(corpus.test) == [text for text in expected if text]
    assert corpus.fingerprint == docstrings(60).fingerprint != code(60).fingerprint
    assert corpus.fingerprint in str(corpus)


def test_a_fingerprint_sees_the_part_and_the_text():
    one = Corpus("a", ("x", "y"), (), ("z",))
    assert one.fingerprint == Corpus("b", ("x", "y"), (), ("z",)).fingerprint
    others = (Corpus("a", ("x",), ("y",), ("z",)), Corpus("a", ("xy",), (), ("z",)))
    assert one.fingerprint not in {other.fingerprint for other in others}


def test_a_cipher_exchanges_letters_only():
    plain = Corpus("p", (string.printable + "é",), ("Aa",), ())
    hidden = cipher(plain, seed=3)
    before, after = plain.train[0], hidden.train[0]
    assert sorted(before) == sorted(after)
    for a, b in zip(before, after, strict=True):
        assert (a != b) == (a in string.ascii_letters)
        assert a.isupper() == b.isupper()
    assert hidden.valid[0][0].lower() == hidden.valid[0][1]
    assert cipher(plain, seed=4).train != hidden.train


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_sums_are_right_and_apart(digits):
    held_out = {1: 15, 2: 500, 3: 500}[digits]
    sums = arithmetic(1000, digits, seed=1, held_out=held_out)
    sides = {}
    for part in ("train", "valid", "test"):
        sides[part] = set()
        for pair in getattr(sums, part):
            a, b = map(int, pair.prompt.removesuffix("=").split("+"))
            assert a + b == int(pair.response) and pair.response.endswith("\n")
            assert len(str(a)) == len(str(b)) == digits
            sides[part].add(frozenset((a, b)))
    assert not sides["train"] & sides["test"] and not sides["train"] & sides["valid"]
    assert not sides["valid"] & sides["test"]
    assert len(sums.train) == 1000 and len(set(sums.test)) == held_out
    other = arithmetic(1000, digits, seed=2, held_out=held_out)
    assert other.test == sums.test and other.train != sums.train
    assert arithmetic(1000, digits, seed=1, held_out=held_out).fingerprint == sums.fingerprint


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"digits": 1, "held_out": 90}, "at most"), ({"digits": 0}, "at least 1"), ({"n": 0}, "n = 0"),
     ({"digits": 12}, "1 to 9")],
)
def test_sums_that_cannot_be(arguments, told):
    with pytest.raises(DataError, match=told):
        arithmetic(**arguments)


def test_json_lines_are_json_and_apart():
    corpus = json_lines(400, seed=0, held_out=100)
    pairs = {"(": ")", "[": "]", "{": "}", "<": ">"}
    brackets = 0
    for line in (*corpus.train, *corpus.test):
        assert line.endswith("\n")
        if set(line.strip()) <= set("()[]{}<>"):
            brackets, stack = brackets + 1, []
            for sign in line.strip():
                if sign in pairs:
                    stack.append(pairs[sign])
                else:
                    assert stack.pop() == sign
            assert not stack
        else:
            assert isinstance(json.loads(line), dict)
    assert 0.15 < brackets / 500 < 0.35
    assert not set(corpus.train) & {*corpus.valid, *corpus.test}
    assert json_lines(400, seed=1, held_out=100).test == corpus.test


def test_windows_ask_for_every_byte_once():
    data = torch.arange(50, dtype=torch.uint8)
    windows = Windows(data, 8)
    asked = torch.cat([labels[1:] for _, labels in windows])
    assert asked.tolist() == list(range(1, 50))  # (50 - 1) / (8 - 1) windows, none left over
    assert len(windows) == 7 and windows[-1][0].tolist() == list(range(42, 50))
    assert [ids.tolist() for ids, _ in windows[0:2]] == [list(range(8)), list(range(7, 15))]
    assert len(Windows(data, 8, stride=8)) == 6
    with pytest.raises(IndexError):
        windows[7]
    with pytest.raises(DataError, match="50 bytes"):
        Windows(data, 51)
    with pytest.raises(DataError):
        Windows(data, 1)


def test_random_windows_are_in_the_text():
    data = torch.arange(100, dtype=torch.uint8)
    windows = random_windows(data, 2000, 10, seed=0)
    assert windows.shape == (2000, 10) and windows.dtype == torch.int64
    assert (windows.diff(dim=1) == 1).all()
    assert set(windows[:, 0].tolist()) == set(range(91))  # every place, the last included
    assert torch.equal(windows, random_windows(data, 2000, 10, seed=0))


def test_bytes_pairs_and_batches():
    text = "naïve \U0001f600\n"
    assert decode(encode(text)) == text and encode("").shape == (0,)
    assert encode(text).tolist() == list(text.encode())
    ids, labels = encode_pair(Pair("é", "ab"))
    assert ids.tolist() == [0xC3, 0xA9, 97, 98]
    assert labels.tolist() == [IGNORED, IGNORED, 97, 98]
    ids, labels = collate([(ids, labels), encode_pair(Pair("", "c"))], pad=7)
    assert ids[1].tolist() == [99, 7, 7, 7]
    assert labels[1].tolist() == [99, IGNORED, IGNORED, IGNORED]


def test_sentences_of_packages_do_not_name_them():
    data = docstring_packages(40, ("numpy", "networkx"))
    assert data.classes == ("numpy", "networkx")
    for part, size in (("train", 40), ("test", 10)):
        labels = [one.label for one in getattr(data, part)]
        assert len(labels) == 2 * size and labels.count("numpy") == size
        for one in getattr(data, part):
            words = np.array(one.text.lower().replace(".", " ").split())
            assert one.label not in one.text.lower() and not np.isin(words, ["np", "nx"]).any()
    texts = [one.text for part in ("train", "valid", "test") for one in getattr(data, part)]
    assert len(set(texts)) == len(texts)
    with pytest.raises(DataError, match="no_such_package"):
        docstring_packages(40, ("numpy", "no_such_package"))
    with pytest.raises(DataError, match="at least two"):
        docstring_packages(40, ("numpy",))


def test_retrieval_pairs_are_distinct_and_do_not_tell():
    pairs = retrieval(100)
    assert len(set(pairs.targets)) == len(pairs.queries) == 100
    for query, target in zip(pairs.queries, pairs.targets, strict=True):
        assert target.replace(" ", "_") not in query and " " in target
    assert pairs.fingerprint == retrieval(100).fingerprint


# ---- the cache ------------------------------------------------------------------------------


def test_stored_once_by_key(tmp_path, monkeypatch):
    monkeypatch.setenv("PASSBAND_CACHE", str(tmp_path))
    calls = []

    def make():
        calls.append(1)
        return {"w": torch.arange(3.0)}

    for _ in range(2):
        assert cache.stored_tensors("t", {"a": 1, "b": 2}, make)["w"].tolist() == [0, 1, 2]
        assert cache.stored_tensors("t", {"b": 2, "a": 1}, make)["w"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    cache.stored_tensors("t", {"a": 2}, make)
    assert len(calls) == 2
    for path in tmp_path.rglob("*.safetensors"):  # cut off, as on a full disk
        path.write_bytes(path.read_bytes()[:-4])
    assert cache.stored_tensors("t", {"a": 2}, make)["w"].tolist() == [0, 1, 2]
    assert len(calls) == 3


def test_a_failed_making_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PASSBAND_CACHE", str(tmp_path))

    def fail(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.stored("t", {}, fail)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and not p.name.endswith(".lock")] == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PASSBAND_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="PASSBAND_CACHE"):
        cache.stored("t", {}, lambda path: None)


def _ask(folder, barrier, number):
    import os
    import time
    from pathlib import Path

    os.environ["PASSBAND_CACHE"] = folder

    def make(path):
        (Path(folder) / f"made-{number}").write_text("")
        time.sleep(0.3)
        path.write_text("whole")

    barrier.wait()
    assert cache.stored("t", {"k": 1}, make).read_text() == "whole"


def test_two_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_ask, args=(str(tmp_path), barrier, i)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1

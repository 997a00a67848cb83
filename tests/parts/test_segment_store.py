"""A store is whole at every moment: processes are killed at each of its file operations."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from passband.errors import CheckpointError, DataError
from passband.parts import segment_store
from passband.parts.segment_store import MANIFEST, SegmentStore

fork = multiprocessing.get_context("fork")


def put(folder, values, *, keep=True):
    """Add a segment, or replace all."""
    here = (Path(folder) / MANIFEST).exists()
    store = SegmentStore.open(folder) if here and keep else SegmentStore.create(folder, "numbers")
    with store.writing():
        with store.segment({"count": len(values)}) as new:
            new.save("values", np.asarray(values))
            with new.stream("halves", np.float32, (len(values),)) as stream:
                for value in values:
                    stream.write(np.array([value / 2]))
        store.commit([new], keep=list(store.segments))
    return store


def content(folder):
    """Everything in it; None where there is no store."""
    if not (Path(folder) / MANIFEST).exists():
        return None
    store = SegmentStore.open(folder, "numbers")
    found = []
    for name, facts in store.segments.items():
        arrays = store.arrays(name)
        assert facts["count"] == len(arrays["values"])
        assert (arrays["halves"] * 2 == arrays["values"]).all()
        found += arrays["values"].tolist()
    return found


def killed_at(operation, folder, act):
    """Whether `act(folder)` in a process of its own is killed at that file operation."""

    def run():
        count = 0

        def stopping(original):
            def call(*args, **options):
                nonlocal count
                count += 1
                if count == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **options)

            return call

        for place, name in (
            (segment_store.os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "open"),
            (segment_store.ArrayStream, "write"), (segment_store.shutil, "rmtree"),
            (SegmentStore, "clean"),
        ):
            setattr(place, name, stopping(getattr(place, name)))
        act(folder)
        os._exit(0)

    process = fork.Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def every_kill(tmp_path, before, act):
    """Contents that kills leave behind, one for each place; `before` makes the folder."""
    found = []
    for operation in range(1, 200):
        folder = tmp_path / str(operation)
        before(folder)
        killed = killed_at(operation, folder, act)
        found.append(content(folder))
        # Whoever writes next is not in its way, and clears up.
        put(folder, [99])
        assert content(folder) == [*(found[-1] or []), 99]
        names = {p.name for p in folder.iterdir() if p.is_dir()}
        assert names == set(SegmentStore.open(folder).segments)
        shutil.rmtree(folder)
        if not killed:
            return found
    raise AssertionError("it never ended")


def test_a_killed_append_adds_all_or_nothing(tmp_path):
    found = every_kill(tmp_path, lambda f: put(f, [1, 2]), lambda f: put(f, [3, 4, 5]))
    old, new = [1, 2], [1, 2, 3, 4, 5]
    assert found == [old] * found.count(old) + [new] * found.count(new)
    assert found.count(old) > 10 and found.count(new) >= 2


def test_a_killed_build_leaves_the_old_one(tmp_path):
    found = every_kill(
        tmp_path, lambda f: put(f, [1, 2]), lambda f: put(f, [3, 4, 5], keep=False)
    )
    old, new = [1, 2], [3, 4, 5]
    assert found == [old] * found.count(old) + [new] * found.count(new)


def test_a_killed_first_build_leaves_nothing(tmp_path):
    found = every_kill(tmp_path, lambda f: None, lambda f: put(f, [3, 4, 5]))
    assert found == [None] * found.count(None) + [[3, 4, 5]] * found.count([3, 4, 5])


def test_an_error_leaves_nothing_behind(tmp_path):
    store = put(tmp_path / "s", [1])
    with pytest.raises(ZeroDivisionError), store.segment() as new:
        new.save("values", np.arange(3))
        1 / 0  # noqa: B018
    with pytest.raises(DataError, match="2 rows"), store.segment() as new:  # noqa: SIM117
        with new.stream("values", np.int64, (3,)) as stream:
            stream.write(np.arange(2))
    assert sum(p.is_dir() for p in (tmp_path / "s").iterdir()) == 1
    assert content(tmp_path / "s") == [1]


def test_two_processes_add_in_turns(tmp_path):
    folder = tmp_path / "s"
    put(folder, [0])

    def add(number):
        for _ in range(5):
            store = SegmentStore.open(folder)
            with store.writing():
                store.reload()
                with store.segment({"count": 1}) as new:
                    new.save("values", np.array([number]))
                    new.save("halves", np.array([number / 2], np.float32))
                store.commit([new], keep=list(store.segments))

    processes = [fork.Process(target=add, args=(number,)) for number in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(content(folder)) == [0] + [1] * 5 + [2] * 5


def test_arrays_of_any_shape(tmp_path):
    store = SegmentStore.create(tmp_path / "s", "numbers")
    arrays = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.zeros((0, 4), np.int32),
        "c": np.zeros(0, np.uint8), "d": np.arange(4)[::2], "e": np.ones((2, 1, 2)).T,
    }
    with store.segment() as new:
        for name, array in arrays.items():
            new.save(name, array)
    store.commit([new])
    again = SegmentStore.open(tmp_path / "s")
    found = again.arrays(next(iter(again.segments)))
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    found["a"][:] = 7  # changes no file
    assert (again.arrays(next(iter(again.segments)))["a"] == arrays["a"]).all()


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(CheckpointError, match="no index"):
        SegmentStore.open(tmp_path)
    folder = tmp_path / "s"
    put(folder, [1, 2, 3])
    with pytest.raises(CheckpointError, match="kind 'numbers'"):
        SegmentStore.open(folder, "letters")
    manifest = json.loads((folder / MANIFEST).read_text())
    (array,) = folder.glob("*/values.npy")
    array.write_bytes(array.read_bytes()[:-4])
    store = SegmentStore.open(folder)
    with pytest.raises(CheckpointError, match="bytes"):
        store.arrays(next(iter(store.segments)))
    array.unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        store.arrays(next(iter(store.segments)))
    for text in ("{", "[]", "{}", json.dumps(manifest | {"version": 99})):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(CheckpointError):
            SegmentStore.open(folder)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        SegmentStore.create(tmp_path, "numbers")
    with pytest.raises(DataError, match="is a file"):
        SegmentStore.create(tmp_path / "thesis.txt", "numbers")

"""Crops and augmentations against their definition, item by item."""

import numpy as np
import pytest

from passband.errors import DataError
from passband.retrieval.contriever.augmentation import (
    AUGMENTATIONS,
    Ragged,
    delete,
    mask,
    replace,
    shuffle,
)
from passband.retrieval.contriever.crops import CropRecipe, Crops
from passband.retrieval.contriever.plain_text import plain_text

CLS, SEP, MASK = 2, 3, 4
PLAIN = CropRecipe(chunk=32, shortest=0.1, longest=0.5, augmentation="none")


def crops(tokens, recipe=PLAIN, batch=8, **more):
    return Crops(tokens, recipe, batch, cls=CLS, sep=SEP, mask=MASK, vocabulary=10_000, **more)


def rows(ids, kept):
    return [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)]


def test_every_crop_is_a_stretch_of_its_chunk():
    tokens = np.arange(100, 5000)  # each token tells its place
    source = crops([tokens])
    for number in range(20):
        ids, kept, keys, keys_kept = source.batch(number)
        for one, other in zip(rows(ids, kept), rows(keys, keys_kept), strict=True):
            for row in (one, other):
                assert (row[0], row[-1]) == (CLS, SEP)
                inside = row[1:-1]
                assert inside == list(range(inside[0], inside[0] + len(inside)))
                assert 3 <= len(inside) <= 16  # floor(32 * 0.1), floor(32 * 0.5)
            span = {*one[1:-1], *other[1:-1]}
            assert max(span) - min(span) < 32


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("pairs", ["crop", "ict"])
def test_within_documents_both_sides_are_of_one_document(sets, pairs):
    counts = np.array([40, 3, 9, 70, 25])
    ends = np.cumsum(counts)
    corpora = [1000 * (s + 1) + np.arange(ends[-1]) for s in range(sets)]  # tokens tell their place
    recipe = CropRecipe(32, 0.2, 0.6, pairs, augmentation="none")
    source = crops(corpora, recipe, documents=[counts] * sets)
    seen = set()
    for number in range(30):
        ids, kept, keys, keys_kept = source.batch(number)
        for one, other in zip(rows(ids, kept), rows(keys, keys_kept), strict=True):
            places = np.array([*one[1:-1], *other[1:-1]])
            owners = set(zip((places // 1000).tolist(),
                             np.searchsorted(ends, places % 1000, "right").tolist(), strict=True))
            assert len(owners) == 1
            assert np.ptp(places) < 32
            seen |= owners
    # All but the one that is too short to be cropped.
    assert seen == {(s + 1, d) for s in range(sets) for d in (0, 2, 3, 4)}


def test_documents_that_are_all_too_short_are_refused():
    with pytest.raises(DataError, match="no document of data set 1"):
        crops([np.arange(100, 112)], documents=[np.array([5, 7])])


def test_an_epoch_takes_every_chunk_once_from_a_new_offset():
    tokens = np.arange(100, 100 + 32 * 16)
    source = crops([tokens], CropRecipe(32, 1.0, 1.0, augmentation="none"), batch=4)
    offsets = set()
    for epoch in range(8):
        starts = []
        for number in range(4):
            ids, _, _, _ = source.batch(4 * epoch + number)
            starts += ids[:, 1].tolist()
        offset = min(starts) - 100
        offsets.add(offset)
        whole = [100 + offset + 32 * i for i in range(15)]
        assert sorted(starts)[:15] == whole
        assert sorted(starts)[15] in (whole[-1] + 32, 100 + 32 * 15)  # or the last full chunk
    assert len(offsets) > 3


def test_lengths_and_starts_are_uniform():
    source = crops([np.arange(100, 30_000)], CropRecipe(64, 0.25, 0.5, augmentation="none"), 256)
    lengths = np.concatenate([source.batch(i)[1].sum(1).numpy() - 2 for i in range(30)])
    assert lengths.min() == 16
    assert lengths.max() in (31, 32)
    counts = np.bincount(lengths)[16:32]
    expected = counts.sum() / 16
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_the_inverse_cloze_gives_a_span_and_the_rest():
    source = crops([np.arange(100, 5000)], CropRecipe(32, 0.1, 0.5, "ict", "none"))
    ids, kept, keys, keys_kept = source.batch(3)
    for one, other in zip(rows(ids, kept), rows(keys, keys_kept), strict=True):
        span, rest = one[1:-1], other[1:-1]
        whole = sorted(span + rest)
        assert whole == list(range(whole[0], whole[0] + 32))
        assert rest == sorted(rest)
        assert span == list(range(span[0], span[0] + len(span)))


def test_batches_depend_on_seed_and_number_alone():
    tokens = [np.arange(100, 5000)]
    ids = [b[0].tolist() for b, _ in zip(crops(tokens, seed=5), range(4), strict=False)]
    assert crops(tokens, seed=5).batch(3)[0].tolist() == ids[3]
    assert crops(tokens, seed=6).batch(3)[0].tolist() != ids[3]


@pytest.mark.parametrize(("power", "expected"), [(0.0, 0.5), (1.0, 0.1)])
def test_data_sets_are_drawn_by_size_to_a_power(power, expected):
    small, large = np.full(1000, 7), np.full(9000, 8)
    source = crops([small, large], batch=4000, coefficient=power)
    ids, _, _, _ = source.batch(0)
    assert float((ids[:, 1] == 7).float().mean()) == pytest.approx(expected, abs=0.04)


def test_too_little_text_is_told_with_both_numbers():
    with pytest.raises(DataError, match=r"31 tokens.*32"):
        crops([np.arange(31)])
    with pytest.raises(DataError, match="data set 2"):
        crops([np.arange(99), np.arange(9)])
    assert crops([np.arange(100, 132)]).batch(9)[0].shape[0] == 8  # one chunk is enough


# ---- augmentations -------------------------------------------------------------------------------


def many(rng):
    lengths = rng.integers(1, 60, 300)
    return Ragged(rng.integers(100, 200, lengths.sum()), lengths)


def split(r):
    return np.split(r.ids, np.cumsum(r.lengths)[:-1])


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_what_stays_and_what_changes(name):
    rng = np.random.default_rng(0)
    before = many(rng)
    after = AUGMENTATIONS[name](before, 0.2, rng, MASK, (500, 600))
    assert after.lengths.sum() == len(after.ids)
    assert len(after.lengths) == len(before.lengths)
    if name != "delete":
        assert (after.lengths == before.lengths).all()
        changed = float((after.ids != before.ids).mean())
        assert changed == pytest.approx({"none": 0.0}.get(name, 0.2), abs=0.04)


def test_deleted_tokens_leave_the_others_in_order():
    rng = np.random.default_rng(1)
    lengths = np.array([40, 1, 80])
    before = Ragged(np.arange(121), lengths)
    after = delete(before, 0.3, rng, MASK, (0, 1))
    for one, row in zip(split(after), split(before), strict=True):
        assert (np.diff(one) > 0).all()
        assert set(one.tolist()) <= set(row.tolist())


def test_a_row_may_lose_all_its_tokens():
    after = delete(Ragged(np.array([9, 9, 7]), np.array([2, 1])), 0.999999,
                   np.random.default_rng(0), MASK, (0, 1))
    ids, starts, lengths = after.between(CLS, SEP)
    assert ids.tolist() == [CLS, SEP, CLS, SEP]
    assert (starts.tolist(), lengths.tolist()) == ([0, 2], [2, 2])


def test_masked_and_replaced_tokens():
    rng = np.random.default_rng(2)
    before = many(rng)
    hidden = mask(before, 0.2, rng, MASK, (500, 600))
    assert set(hidden.ids[hidden.ids != before.ids].tolist()) == {MASK}
    other = replace(before, 0.2, rng, MASK, (500, 600))
    new = other.ids[other.ids != before.ids]
    assert new.min() >= 500
    assert new.max() < 600


def test_shuffled_tokens_stay_in_their_row():
    rng = np.random.default_rng(3)
    before = many(rng)
    after = shuffle(before, 0.5, rng, MASK, (500, 600))
    for one, row in zip(split(after), split(before), strict=True):
        assert sorted(one.tolist()) == sorted(row.tolist())


# ---- plain text ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [
    ("plain text, as it is.", "plain text, as it is."), ("‘a’ “b” «c»", "'a' \"b\" \"c\""),
    ("1–2 — 3‑4 −5", "1-2 - 3-4 -5"), ("a⁄b", "a/b"), ("tab\tand\nline", "tab and line"),
    ("zero\u200bwidth\x00", "zerowidth"), ("né 日本", "né 日本"), ("", ""),
])
def test_text_is_folded(given, expected):
    assert plain_text(given) == expected

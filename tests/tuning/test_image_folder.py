"""A user's folder of pictures as a job for the diffusion model of digits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from passband.bench.budget import Budget
from passband.data.digits import digits
from passband.errors import DataError
from passband.tuning.jobs.image_folder import read


@pytest.fixture
def folder(tmp_path):
    """Twelve digits, four times as large, in colour."""
    rows = []
    for i in range(12):
        image, label = digits().train[i]
        large = np.kron(np.rint(image[0].numpy() * 255).astype(np.uint8), np.ones((4, 4), np.uint8))
        Image.fromarray(np.stack([large] * 3, -1)).save(tmp_path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"the digit {int(label)}, in blue"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_pictures_become_digits(folder):
    data = read(folder)
    assert len(data.train.examples) == 10
    originals = torch.stack([digits().train[i][0] for i in range(12)])
    for image, label in data.train.examples:
        gaps = (originals - image).abs().amax((1, 2, 3))
        assert gaps.min() < 1 / 255 and digits().train.labels[int(gaps.argmin())] == label
    assert read(folder).train.examples.labels.tolist() == data.train.examples.labels.tolist()


def test_a_method_learns_from_them_and_is_measured(folder):
    from passband import create

    data = read(folder)
    system = create("sara", preset="smoke")
    assert system.fit(data.for_fit(), Budget(steps=2))["steps"] == 2
    found = data.test.measure(system.adapt(data.test.model()).eval())
    assert set(found) == {"target", "retention", "out_of_domain"}
    assert found["target"] > 0 and 0 <= found["retention"] <= 100


@pytest.mark.parametrize(
    ("line", "said"),
    [('{"file_name": "0.png", "text": "no number"}', "line 1"), ("no json", "line 1"),
     ('{"file_name": "gone.png", "text": "3"}', "gone.png"), ("", "empty")],
)
def test_what_is_wrong_is_said(folder, line, said):
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=said):
        read(folder)


def test_too_few_no_table_and_a_model(folder, tmp_path):
    few = (folder / "metadata.jsonl").read_text().splitlines()[:3]
    (folder / "metadata.jsonl").write_text("\n".join(few))
    with pytest.raises(DataError, match="3 pictures"):
        read(folder)
    with pytest.raises(DataError, match="--model"):
        read(folder, model=tmp_path)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"metadata\.jsonl"):
        read(folder)

"""Some entries of a matrix product, without the product.

    out_n = sum_b left[b, i_n] right[b, j_n]        left [B, m], right [B, n] -> out [k]

>>> left, right = torch.randn(5, 3), torch.randn(5, 4)
>>> i, j = torch.tensor([0, 2]), torch.tensor([3, 1])
>>> torch.allclose(sampled_product(left, right, i, j), (left.T @ right)[i, j], atol=1e-6)
True

Costs k B instead of m n B, but at the speed of memory instead of that of a matrix product:
`is_faster` says from which size on that pays on a CPU.
"""

from __future__ import annotations

from torch import Tensor

CHUNK = 1 << 22  # numbers gathered at a time
# Measured on one core, B from 256 to 2048: half the time of the product at these sizes, and slower
# than it for weights of 128 x 344 at any share above 0.1 %.
SHARE, SMALLEST = 0.005, 384 * 384


def is_faster(shape: tuple[int, ...], count: int) -> bool:
    """Whether `count` entries of a product of this shape are faster sampled than made densely.

    >>> is_faster((1024, 1024), 2000), is_faster((1024, 1024), 20_000), is_faster((128, 344), 40)
    (True, False, False)
    """
    size = shape[0] * shape[1]
    return size >= SMALLEST and count <= SHARE * size


def sampled_product(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(left^T right)[rows, columns] [k], in the type of the factors.

    left [B, m], right [B, n]; rows, columns [k]
    """
    # Transposed once, so that each gathered line lies together in memory.
    lines, others = left.mT.contiguous(), right.mT.contiguous()
    out = left.new_empty(len(rows))
    step = max(1, CHUNK // max(1, left.shape[0]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        gathered = lines.index_select(0, rows[part])
        out[part] = gathered.mul_(others.index_select(0, columns[part])).sum(1)
    return out

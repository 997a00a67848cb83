"""Second-order finite differences on a uniform grid (the textbook method).

    u'_i  = (u_{i+1} - u_{i-1}) / 2h            u''_i = (u_{i+1} - 2 u_i + u_{i-1}) / h^2
    u'_0  = (-3 u_0 + 4 u_1 - u_2) / 2h         u''_0 = (2 u_0 - 5 u_1 + 4 u_2 - u_3) / h^2
    error = O(h^2);  between the nodes a cubic spline, O(h^4): `passband.parts.spline`

The one-sided rows serve faces that carry the equation, such as the last time of a heat problem.
The matrices go into `passband.parts.collocation.Collocation`.

>>> first, second = difference_matrices(np.linspace(0, 1, 11))
>>> x = np.linspace(0, 1, 11)
>>> bool(np.allclose(first @ x**2, 2 * x)), bool(np.allclose(second @ x**2, 2.0))
(True, True)
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from passband.errors import DataError

Array = np.ndarray


def difference_matrices(x: Array) -> tuple[sparse.csr_array, sparse.csr_array]:
    """First and second derivative at n uniform nodes, two sparse matrices [n, n]."""
    n, h = len(x), (x[-1] - x[0]) / (len(x) - 1)
    if n < 4 or not np.allclose(np.diff(x), h, rtol=1e-6):
        raise DataError(f"{n} nodes", expected="at least 4, uniformly spaced")
    ones = np.ones(n - 1)
    first = sparse.diags_array([-ones, ones], offsets=[-1, 1], format="lil")
    first[0, :3], first[-1, -3:] = [-3, 4, -1], [1, -4, 3]
    second = sparse.diags_array([ones, np.full(n, -2.0), ones], offsets=[-1, 0, 1], format="lil")
    second[0, :4], second[-1, -4:] = [2, -5, 4, -1], [-1, 4, -5, 2]
    return first.tocsr() / (2 * h), second.tocsr() / h**2


"""Poisson on a long, thin rectangle: 45 waves along x, one along y, so each axis needs its grid."""
import numpy as np

from passband.pde import Problem


def u(x, y): return np.sin(70 * x) * np.cos(11 * y)

problem = Problem({"x": (0, 4), "y": (0, 0.5)}, {"xx": 1, "yy": 1},
                  source=lambda x, y: -(70**2 + 11**2) * u(x, y), exact=u)

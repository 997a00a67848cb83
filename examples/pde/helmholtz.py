"""Helmholtz at k = 60.2: u_xx + u_yy + k^2 u = f, between two resonances of the unit square."""
import numpy as np

from passband.pde import Problem


def u(x, y): return np.sin(45 * x) * np.cos(30 * y)

problem = Problem({"x": (0, 1), "y": (0, 1)}, {"xx": 1, "yy": 1, "": 60.2**2},
                  source=lambda x, y: (60.2**2 - 45**2 - 30**2) * u(x, y), exact=u)

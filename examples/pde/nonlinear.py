"""A pointwise nonlinear term: u_xx + u_yy + exp(u) = f with an oscillating solution."""
import numpy as np

from passband.pde import Problem


def u(x, y): return np.sin(30 * x) * np.cos(20 * y)

problem = Problem({"x": (0, 1), "y": (0, 1)}, {"xx": 1, "yy": 1}, nonlinear=(np.exp, np.exp),
                  source=lambda x, y: -(30**2 + 20**2) * u(x, y) + np.exp(u(x, y)), exact=u)

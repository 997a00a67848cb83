"""Heat, u_t = 0.1 u_xx + f: initial and side values only; the last time is found."""
from numpy import cos, exp, pi, sin

from passband.pde import Problem


def u(x, t): return sin(3 * pi * x) * exp(-t) + 0.2 * sin(60 * x) * cos(50 * t)
def f(x, t): return (0.9 * pi**2 - 1) * sin(3 * pi * x) * exp(-t) + \
    sin(60 * x) * (72 * cos(50 * t) - 10 * sin(50 * t))
problem = Problem({"x": (0, 1), "t": (0, 1)}, {"t": 1, "xx": -0.1}, f, {"x": u, "t-": u}, exact=u)

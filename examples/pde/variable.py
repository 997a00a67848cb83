"""Variable coefficients and a mixed derivative; a known solution is used for the report only."""
from numpy import cos, sin

from passband.pde import Problem

operator = {"xx": lambda x, y: 1 + 0.5 * sin(5 * x), "xy": 0.3, "x": 10,
            "yy": lambda x, y: 2 + x * y}
problem = Problem({"x": (0, 1), "y": (0, 1)}, operator, exact=lambda x, y: cos(40 * x + 25 * y),
                  source=lambda x, y: -400 * sin(40 * x + 25 * y) - cos(40 * x + 25 * y)
                  * (1600 * (1 + 0.5 * sin(5 * x)) + 300 + 625 * (2 + x * y)))

"""Data on a grid, as measured: writes plate.npz, u_xx + 2 u_yy = f with u given around."""
import numpy as np

x, y = np.linspace(0, 1, 201), np.linspace(0, 2, 161)
u = np.sin(12 * x)[:, None] * np.exp(-y)  # only its edges are written
np.savez("plate.npz", x1=x, x2=y, f=(2 - 12**2) * u, operator='{"xx": 1, "yy": 2}',
         g1_lo=u[0], g1_hi=u[-1], g2_lo=u[:, 0], g2_hi=u[:, -1])

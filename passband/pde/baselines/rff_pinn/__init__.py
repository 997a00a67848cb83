"""PINN with random Fourier features: the class is `passband.pde.baselines.pinn`'s."""

"""PINN with a weighted boundary loss: the class is `passband.pde.baselines.pinn`'s."""

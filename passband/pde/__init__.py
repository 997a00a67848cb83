"""Partial differential equations: solvers of a stated problem, and neural operators."""

from passband.data.pde import Problem, read_problem

__all__ = ["Problem", "read_problem"]

"""Fishr: the variance of the examples' gradients in the head is brought together."""

"""Hessian alignment: the same gradient and curvature of the head's loss in every domain."""

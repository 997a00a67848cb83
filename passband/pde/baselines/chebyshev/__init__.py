"""Chebyshev collocation, the baseline that is hard to beat on boxes with smooth solutions."""

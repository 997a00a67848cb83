"""LT-SFT: sparse differences of tasks and languages that add up (arXiv 2110.07560)."""

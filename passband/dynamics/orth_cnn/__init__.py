"""orth-cnn: a penalty that makes convolutions near-isometric, and certificates of how near."""

"""Weight clipping: weights are cut off at a bound after every step."""

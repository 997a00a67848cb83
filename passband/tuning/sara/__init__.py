"""SaRA: only the entries of tiny absolute value are trained, so that the prior is kept."""

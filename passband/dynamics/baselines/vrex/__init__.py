"""Risk extrapolation: a penalty on the variance of the domains' risks."""

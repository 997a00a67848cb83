"""IGA: a penalty on the variance of the domains' gradients."""

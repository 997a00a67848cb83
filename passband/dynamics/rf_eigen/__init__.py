"""rf-eigen: errors of random-feature and kernel ridge regression, predicted from eigenvalues."""

"""CORAL: means and covariances of the features are brought together."""

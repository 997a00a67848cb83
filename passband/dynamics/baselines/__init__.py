"""What the classifiers of the family are compared with."""

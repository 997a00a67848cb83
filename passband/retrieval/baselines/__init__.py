"""What the systems of the family are compared with."""

"""Search and recommendation."""

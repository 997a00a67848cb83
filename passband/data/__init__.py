"""Embedded data (generated, or shipped inside installed packages) and readers of users' files."""

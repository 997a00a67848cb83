"""The engine: contracts, training loop, cells, comparison, claims, results, report.

It knows systems and tasks by their contracts only, never by name.
"""

"""RM3: a relevance model of the passages found first, mixed with the query."""

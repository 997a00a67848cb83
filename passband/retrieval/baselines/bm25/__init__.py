"""BM25: ranking by the words that query and document share."""

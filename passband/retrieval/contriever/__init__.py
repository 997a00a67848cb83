"""Contriever: a dense retriever from unlabelled text, by contrasting crops of it."""

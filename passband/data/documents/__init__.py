"""Collections to search: documents, queries and judgements; generated, embedded and users' own."""

"""MiniLM: dense retrieval by a sentence encoder as it comes."""

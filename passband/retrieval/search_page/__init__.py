"""A search engine in one HTML file: hits of several systems side by side, without a server."""

from passband.retrieval.search_page.page import write_page

__all__ = ["write_page"]

"""Search over sparse vectors by an inverted index: exact, appendable, on disk or in memory."""

from passband.parts.inverted_index.index import InvertedIndex
from passband.parts.inverted_index.rows import SparseRows, as_rows
from passband.parts.inverted_index.segment import Segment

__all__ = ["InvertedIndex", "Segment", "SparseRows", "as_rows"]

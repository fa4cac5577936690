"""Reading a method back from its composition and its cards: words, tables, a picture, pages."""

from polopt.describe.facts import Facts, facts, method_map
from polopt.describe.text import explain

__all__ = ["Facts", "explain", "facts", "method_map"]

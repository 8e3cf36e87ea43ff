"""Shortstack: make a sentence-embedding model smaller and faster.

Everything is `shortstack.*`, so that our modules and another package's `model` or `evaluate` never hide each other.
An installed package has its files in this directory. In a checkout they stand at the top, where a reader finds them
first: there this package looks for its modules one directory up, too.
"""

from pathlib import Path

_HERE = Path(__file__).parent
if not (_HERE / "model").is_dir():
    __path__.append(str(_HERE.parent))

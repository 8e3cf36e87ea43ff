"""Shortstack: make a sentence-embedding model smaller and faster.

    from shortstack import Embedder, distill

Everything is `shortstack.*`, so that our modules and another package's `model` or `evaluate` never hide each other.
An installed package has its files in this directory. In a checkout they stand at the top, where a reader finds them
first: there this package looks for its modules one directory up, too.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shortstack.distilling import distill as distill
    from shortstack.model import Embedder as Embedder

__all__ = ["Embedder", "distill"]

_HERE = Path(__file__).parent
if not (_HERE / "model").is_dir():
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and `shortstack.serve` runs without it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("shortstack-embeddings")
    if name == "Embedder":
        from shortstack.model import Embedder

        return Embedder
    if name == "distill":
        from shortstack.distilling import distill

        return distill
    raise AttributeError(f"module 'shortstack' has no attribute {name!r}")

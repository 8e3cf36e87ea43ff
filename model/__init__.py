"""The network: a BERT encoder with chosen layers, pooling, and the Embedder that turns sentences into vectors."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shortstack.model.bert import DistilledBert as DistilledBert
    from shortstack.model.embedder import Embedder as Embedder
    from shortstack.model.tokens import PackedTokens as PackedTokens

_MODULES = {"DistilledBert": "bert", "Embedder": "embedder", "PackedTokens": "tokens"}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and `model.files` runs without it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

"""The network: a BERT encoder with chosen layers, pooling, and the Embedder that turns sentences into vectors."""

from shortstack.model.bert import DistilledBert
from shortstack.model.embedder import Embedder
from shortstack.model.tokens import PackedTokens

__all__ = ["DistilledBert", "Embedder", "PackedTokens"]

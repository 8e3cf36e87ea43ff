"""The network: a BERT encoder with chosen layers, pooling, and the Embedder that turns sentences into vectors."""

from model.bert import DistilledBert
from model.embedder import Embedder
from model.tokens import PackedTokens

__all__ = ["DistilledBert", "Embedder", "PackedTokens"]

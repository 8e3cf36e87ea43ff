"""The network: a BERT encoder with chosen layers, pooling, and the Embedder that turns sentences into vectors."""

from model.bert import DistilledBert, PackedTokens
from model.embedder import Embedder

__all__ = ["DistilledBert", "Embedder", "PackedTokens"]

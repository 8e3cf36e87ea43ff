"""The network: BERT's encoder over packed sentences, from token numbers to one vector a sentence. This is what trains.

transformers' model holds the weights under the names that the field knows; this file computes with them. The tokens of
a batch lie end to end in one (N, D) matrix, so that every product, norm and activation sees real tokens only. Only
attention must keep sentences apart (attention.py); it needs no mask.

    embed_packed    word + position + segment vectors, then a norm
    Layer           attention, add and norm; then an MLP, add and norm
    forward_packed  the embeddings, all layers, pooling

Shapes: B sentences, N tokens of the whole batch, D hidden dimensions, H heads, E = D / H, T tokens of the longest, I
units between the two products of an MLP.

Sources: Devlin et al., "BERT", 2018 (https://arxiv.org/abs/1810.04805); the layer is that of Vaswani et al., 2017
(https://arxiv.org/abs/1706.03762).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from shortstack.model.attention import attention
from shortstack.model.pooling import Pooling, pool
from shortstack.model.tokens import PackedTokens


@dataclass
class Layer:
    """One layer of the encoder: transformers' modules under the paper's names, and what they compute together."""

    query: nn.Linear  # D -> D, all heads side by side
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear  # D -> D
    attention_norm: nn.LayerNorm
    intermediate: nn.Linear  # D -> I, which is 4 D in most models
    output: nn.Linear  # I -> D
    output_norm: nn.LayerNorm
    heads: int
    activation: str  # its name in transformers

    def __call__(
        self,
        hidden_ND: torch.Tensor,
        tokens: PackedTokens,
        bias_HTT: torch.Tensor | None = None,
        dropout: float = 0.0,
        first_only: bool = False,
    ) -> torch.Tensor:
        """Attention, then the MLP; the result of either is added to its input, and the sum is normalised.

        Args:
            hidden_ND: the layer's input.
            tokens: the packed batch.
            bias_HTT: added to the attention scores, by query and key; None adds nothing.
            dropout: the probability of dropping a number, attention weights included; 0 outside training.
            first_only: compute each sentence's first row only; it attends to the whole sentence as before.

        Returns:
            (N, D), or (B, D) with `first_only`.
        """
        N, D = hidden_ND.shape
        weight, bias = self.joined_qkv()
        qkv_N3HE = F.linear(hidden_ND, weight, bias).view(N, 3, self.heads, D // self.heads)
        context_ND = attention(qkv_N3HE, tokens, first_only, dropout, bias_HTT).flatten(1)
        if first_only:
            hidden_ND = hidden_ND.index_select(0, tokens.first_rows)
        hidden_ND = self.attention_norm(hidden_ND + F.dropout(self.attention_output(context_ND), dropout))
        inner_NI = ACT2FN[self.activation](self.intermediate(hidden_ND))
        return self.output_norm(hidden_ND + F.dropout(self.output(inner_NI), dropout))

    def joined_qkv(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (3 D, D) and biases (3 D,) of queries, keys and values: one large product beats three small ones."""
        parts = self.query, self.key, self.value
        return torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])


class PackedForward:
    """Adds a forward over packed tokens to one of transformers' encoders; bert.py has a class for each architecture.

    transformers' own forward, over a padded batch, stays as it is. `config`, `embeddings`, `encoder` and `pooler` come
    from transformers' class, which is the second base of those classes.

    Attributes:
        dropout: probability; acts in training mode only. The config's dropout is for transformers' own forward.
        segments: whether `token_type_ids` tell a first text from a second.
        inner_size, activation: the config's fields for the width of the MLP and what follows its first product.
    """

    config: Any
    embeddings: Any
    encoder: Any  # has the list `layer`
    pooler: Any  # never used or trained; kept so that saved files are complete
    training: bool
    dropout = 0.0
    segments = False
    inner_size, activation = "intermediate_size", "hidden_act"

    def forward_packed(self, tokens: PackedTokens, pooling: Pooling | None = None) -> torch.Tensor:
        """Encode a packed batch.

        Args:
            tokens: the batch.
            pooling: how to make one vector of each sentence; None leaves one a token. For cls the last layer computes
                only the first tokens' rows: the result is the same, and most of that layer is saved.

        Returns:
            (B, D) in fp32; without pooling (N, D).
        """
        hidden, bias_HTT = self.embed_packed(tokens), self.position_bias(tokens)
        dropout = self.dropout if self.training else 0.0
        layers = self.layers()
        for number, layer in enumerate(layers, start=1):
            first_only = pooling is Pooling.CLS and number == len(layers)
            hidden = layer(hidden, tokens, bias_HTT, dropout, first_only)
        if pooling is None:
            return hidden
        return pool(hidden, tokens, pooling)

    def embed_packed(self, tokens: PackedTokens) -> torch.Tensor:
        """Word, position and, if the model has them, segment vectors, summed and normalised: (N, D)."""
        tables = self.embeddings
        summed_ND = tokens.word_vectors  # a batch to train on brings them (training/rows.py)
        if summed_ND is None:
            summed_ND = tables.word_embeddings(tokens.input_ids)
        if hasattr(tables, "token_type_embeddings"):  # RoBERTa has the table, of one row
            segments = tables.token_type_embeddings.weight
            summed_ND = summed_ND + (segments[0] if tokens.token_type_ids is None else segments[tokens.token_type_ids])
        summed_ND = summed_ND + tables.position_embeddings(tokens.positions + self.first_position)
        return F.dropout(tables.LayerNorm(summed_ND), self.dropout, self.training)

    def position_bias(self, tokens: PackedTokens) -> torch.Tensor | None:
        """The bias added to the attention scores of all layers, (H, T, T); None, as for BERT, adds nothing."""
        return None

    # -- where things are --------------------------------------------------------------------------------------------

    def layers(self) -> list[Layer]:
        """The encoder's layers."""
        return [self.layer_of(module) for module in self.encoder.layer]

    def layer_of(self, module: Any) -> Layer:
        """One of transformers' layers under the paper's names."""
        query, key, value, attention_output, attention_norm = self.attention_of(module)
        intermediate, output, output_norm = self.mlp_of(module)
        return Layer(
            query=query,
            key=key,
            value=value,
            attention_output=attention_output,
            attention_norm=attention_norm,
            intermediate=intermediate,
            output=output,
            output_norm=output_norm,
            heads=self.config.num_attention_heads,
            activation=getattr(self.config, self.activation),
        )

    def attention_of(self, module: Any) -> tuple[Any, ...]:
        """Query, key, value, output and norm of a layer, by the names of BERT and most others."""
        attend, output = module.attention.self, module.attention.output
        return attend.query, attend.key, attend.value, output.dense, output.LayerNorm

    def mlp_of(self, module: Any) -> tuple[Any, ...]:
        """The two products of a layer's MLP and the norm after them."""
        return module.intermediate.dense, module.output.dense, module.output.LayerNorm

    @property
    def published(self) -> str:
        """The name of transformers' class, the second base, for `architectures` in a saved config.json."""
        return type(self).__bases__[1].__name__

    @property
    def first_position(self) -> int:
        """The number of a sentence's first position: RoBERTa and MPNet reserve some positions for padding."""
        padding = self.embeddings.position_embeddings.padding_idx
        return 0 if padding is None else padding + 1

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence that the model has positions for."""
        return self.config.max_position_embeddings - self.first_position

    def keep_layers(self, layers: Sequence[int]) -> Self:
        """A copy with only these layers, counted from 0, and everything around them."""
        kept = copy.deepcopy(self)
        kept.encoder.layer = nn.ModuleList(kept.encoder.layer[number] for number in layers)
        kept.config.num_hidden_layers = len(layers)
        return kept

"""DistilledBert: transformers' BertModel with some of its layers and a forward of our own.

The forward never computes padding. A batch's tokens lie end to end in one (N, D) matrix, so every matrix product, layer
norm and activation runs on real tokens only; attention, which must not cross sentences, runs once per run of equally
long sentences (or once for all, with variable-length flash attention on a GPU) and needs no mask.

Shapes: B sentences, T tokens a sentence, N tokens of the whole batch, D hidden dimensions, H heads, E = D / H.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert.modeling_bert import BertLayer

from model.attention import attention
from model.tokens import PackedTokens

Product = Callable[[torch.Tensor], torch.Tensor]  # (N, inputs) -> (N, outputs): a matrix product with its bias


class LayerParts(NamedTuple):
    """What one layer computes with: four matrix products and two layer norms."""

    qkv: Product  # (N, D) -> (N, 3D): queries, keys and values in one
    attention_output: Product  # (N, D) -> (N, D)
    attention_norm: Product  # (N, D) -> (N, D)
    intermediate: Product  # (N, D) -> (N, 4D), its activation applied
    output: Product  # (N, 4D) -> (N, D)
    output_norm: Product  # (N, D) -> (N, D)


# A weight, a bias and the name of an activation ("" for none), all three computed as one.
MakeProduct = Callable[[torch.Tensor, torch.Tensor | None, str], Product]


def plain_product(weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "") -> Product:
    """A product that autograd and autocast see: what training uses."""
    product = partial(F.linear, weight=weight, bias=bias)
    return then_activate(product, activation) if activation else product


def then_activate(product: Product, activation: str) -> Product:
    """A product followed by one of transformers' activations."""
    activate = ACT2FN[activation]
    return lambda x_NI: activate(product(x_NI))


def layer_parts(
    layer: BertLayer, activation: str, make: MakeProduct = plain_product, dtype: torch.dtype | None = None
) -> LayerParts:
    """The parts of a transformers BertLayer, its query, key and value weights joined into one.

    Args:
        layer: the layer.
        activation: the name of the one after the intermediate product.
        make: lays out a weight, a bias and an activation as a product.
        dtype: what the layer norms are cast to; None leaves them.
    """

    def norm(module: torch.nn.LayerNorm) -> Product:
        weight, bias = (p if dtype is None else p.detach().to(dtype) for p in (module.weight, module.bias))
        shape = module.normalized_shape
        return partial(F.layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=module.eps)

    attention = layer.attention.self
    joined = (attention.query, attention.key, attention.value)
    return LayerParts(
        qkv=make(torch.cat([part.weight for part in joined]), torch.cat([part.bias for part in joined]), ""),
        attention_output=make(layer.attention.output.dense.weight, layer.attention.output.dense.bias, ""),
        attention_norm=norm(layer.attention.output.LayerNorm),
        intermediate=make(layer.intermediate.dense.weight, layer.intermediate.dense.bias, activation),
        output=make(layer.output.dense.weight, layer.output.dense.bias, ""),
        output_norm=norm(layer.output.LayerNorm),
    )


class DistilledBert(BertModel):
    """A BERT encoder with our own forward; tensor names and config are the field's.

    The pooler is kept where the teacher has one, unused and untrained, so that what is saved loads everywhere without a
    missing tensor.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        if self.pooler is not None:
            self.pooler.requires_grad_(False)
        self.dropout = 0.0  # probability, of attention weights too; acts in training mode only
        self.prepared: list[LayerParts] | None = None
        self.dtype_of_hidden = torch.float32

    def keep_layers(self, layers: Sequence[int]) -> "DistilledBert":
        """A new DistilledBert with copies of these layers (counted from 0), of the embeddings and of the pooler."""
        config = BertConfig.from_dict(self.config.to_dict() | {"num_hidden_layers": len(layers)})
        student = DistilledBert(config, add_pooling_layer=self.pooler is not None)
        student.embeddings.load_state_dict(self.embeddings.state_dict())
        if self.pooler is not None and student.pooler is not None:
            student.pooler.load_state_dict(self.pooler.state_dict())
        for new, old in enumerate(layers):
            student.encoder.layer[new].load_state_dict(self.encoder.layer[old].state_dict())
        torch.nn.Module.to(student, self.device)
        return student

    def prepare(self, make: MakeProduct, dtype: torch.dtype) -> None:
        """Fix the weights' layout for inference: join, cast and repack them once instead of in every forward.

        Args:
            make: lays out a weight, a bias and an activation as a product.
            dtype: the type of the vectors between products.
        """
        with torch.no_grad():
            self.prepared = [layer_parts(layer, self.config.hidden_act, make, dtype) for layer in self.encoder.layer]
        self.dtype_of_hidden = dtype

    def forget_prepared(self) -> None:
        """Drop the weights that `prepare` laid out, before the parameters that they copy change."""
        self.prepared, self.dtype_of_hidden = None, torch.float32

    def train(self, mode: bool = True) -> "DistilledBert":
        """Switch between training and evaluation mode."""
        if mode:
            self.forget_prepared()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "DistilledBert":  # what .to() and the like call
        self.forget_prepared()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_prepared()
        super()._load_from_state_dict(*args, **kwargs)

    def embed_tokens(self, tokens: PackedTokens) -> torch.Tensor:
        """Word, position and segment embeddings, summed and normalised: (N, D)."""
        tables = self.embeddings
        words_ND = tokens.word_vectors
        if words_ND is None:
            words_ND = tables.word_embeddings(tokens.input_ids)
        segments = tables.token_type_embeddings.weight
        segments_ND = segments[0] if tokens.token_type_ids is None else segments[tokens.token_type_ids]
        summed_ND = words_ND + segments_ND + tables.position_embeddings(tokens.positions)
        return F.dropout(tables.LayerNorm(summed_ND), self.dropout, self.training).to(self.dtype_of_hidden)

    def encode_packed(self, tokens: PackedTokens, first_token_only: bool = False) -> torch.Tensor:
        """Run the encoder on a packed batch.

        Args:
            tokens: the batch.
            first_token_only: return only each sentence's first row, (B, D). The last layer then computes its output
                for these rows alone, which spares most of that layer: exact, and what cls pooling needs.

        Returns:
            The last layer's output, (N, D) or (B, D).
        """
        hidden = self.embed_tokens(tokens)
        last = len(self.encoder.layer) - 1
        for number, layer in enumerate(self.encoder.layer):
            rows = tokens.of_first_tokens if first_token_only and number == last else tokens
            parts = self.prepared[number] if self.prepared else layer_parts(layer, self.config.hidden_act)
            hidden = self.run_layer(hidden, parts, tokens, rows)
        return hidden

    def run_layer(
        self, hidden: torch.Tensor, parts: LayerParts, tokens: PackedTokens, rows: PackedTokens
    ) -> torch.Tensor:
        """One post-norm transformer layer (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): attention, then MLP.

        Returns the rows of `rows` only: (N, D) or (B, D).
        """
        dropout = self.dropout if self.training else 0.0
        qkv = parts.qkv(hidden)
        heads = self.config.num_attention_heads
        context = attention(qkv.view(-1, 3, heads, hidden.shape[1] // heads), tokens, rows, dropout)
        if rows is not tokens:
            hidden = hidden[tokens.boundaries[:-1].long()]
        attended = F.dropout(parts.attention_output(context.flatten(1)), dropout, self.training)
        hidden = parts.attention_norm(hidden + attended)

        outer = F.dropout(parts.output(parts.intermediate(hidden)), dropout, self.training)
        return parts.output_norm(hidden + outer)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """The field's usual face: a padded batch in, `last_hidden_state` (B, T, D) and `pooler_output` (B, D) out.

        Rows of padding (attention_mask 0) are 0 in the result, and cost nothing.
        """
        B, T = input_ids.shape
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        order = mask.sum(dim=1).argsort(stable=True)
        kept = mask[order]
        lengths = kept.sum(dim=1).cpu()
        columns = torch.arange(T, device=input_ids.device).expand(B, T)[kept]
        segments = None if token_type_ids is None else token_type_ids[order][kept]
        packed = PackedTokens(input_ids[order][kept], columns, lengths, segments)
        hidden_ND = self.encode_packed(packed)

        padded = hidden_ND.new_zeros(B, T, hidden_ND.shape[1])
        padded[kept] = hidden_ND
        last_hidden_state = padded[order.argsort()]
        pooled = self.pooler(last_hidden_state.float()) if self.pooler is not None else None
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=last_hidden_state, pooler_output=pooled)

"""DistilledBert: one of transformers' BERT-like encoders with some of its layers and a forward of our own.

The forward never computes padding. A batch's tokens lie end to end in one (N, D) matrix, so every matrix product, layer
norm and activation runs on real tokens only; attention, which must not cross sentences, runs once per run of equally
long sentences (or once for all, with variable-length flash attention on a GPU) and needs no mask.

Shapes: B sentences, T tokens a sentence, N tokens of the whole batch, D hidden dimensions, H heads, E = D / H.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from shortstack.model.attention import attention
from shortstack.model.families import FAMILIES, Family, position_buckets
from shortstack.model.tokens import PackedTokens

# (N, inputs) -> (N, outputs). A product may take a residual (N, outputs) as well, to which it is added, and the
# probability of dropping a number of the product before.
Part = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Linear:
    """A matrix product with its bias and activation, as training computes it: autograd and autocast see it."""

    weight: torch.Tensor  # (outputs, inputs)
    bias: torch.Tensor | None  # (outputs,)
    activation: str = ""  # the name of one of transformers'; "" for none

    def __call__(self, x_NI: torch.Tensor, residual_NO: torch.Tensor | None = None, dropout: float = 0) -> torch.Tensor:
        product = F.linear(x_NI, self.weight, self.bias)
        if self.activation:
            product = ACT2FN[self.activation](product)
        return product if residual_NO is None else residual_NO + F.dropout(product, dropout, training=dropout > 0)

    def detached_as(self, dtype: torch.dtype) -> "Linear":
        """The same in another type, out of autograd's sight."""
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return Linear(self.weight.detach().to(dtype), bias, self.activation)


@dataclass(frozen=True)
class Norm:
    """A layer norm over the last dimension."""

    weight: torch.Tensor  # (D,)
    bias: torch.Tensor  # (D,)
    eps: float

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x_ND, self.weight.shape, self.weight, self.bias, self.eps)

    def detached_as(self, dtype: torch.dtype) -> "Norm":
        """The same in another type, out of autograd's sight."""
        return Norm(self.weight.detach().to(dtype), self.bias.detach().to(dtype), self.eps)


class Layer(NamedTuple):
    """What one layer computes with: four matrix products and two layer norms."""

    qkv: Part  # (N, D) -> (N, 3D): queries, keys and values in one
    attention_output: Part  # (N, D) and a residual -> (N, D)
    attention_norm: Part  # (N, D) -> (N, D)
    intermediate: Part  # (N, D) -> (N, 4D), its activation applied
    output: Part  # (N, 4D) and a residual -> (N, D)
    output_norm: Part  # (N, D) -> (N, D)


class Network(NamedTuple):
    """What the encoder computes with. `model.products.prepare` makes one for inference of it."""

    embed: Callable[[PackedTokens], torch.Tensor]  # a batch's embedding vectors, (N, D)
    bias: Callable[[PackedTokens], torch.Tensor | None]  # added to attention scores, (H, longest, longest), or None
    layers: list[Layer]
    heads: int
    dropout: float  # probability
    alike: bool = False  # whether attention rounds a sentence's numbers alike in any company, which costs a query time


def layer_of(module: nn.Module, family: Family, activation: str) -> Layer:
    """The parts of a layer of transformers', its query, key and value weights joined into one.

    Args:
        module: one layer.
        family: says where the parts are.
        activation: the name of the one after the intermediate product.
    """

    def linear(name: str, activation: str = "") -> Linear:
        part: Any = module.get_submodule(name)
        return Linear(part.weight, part.bias, activation)

    def norm(name: str) -> Norm:
        part: Any = module.get_submodule(name)
        return Norm(part.weight, part.bias, part.eps)

    qkv: list[Any] = [module.get_submodule(name) for name in family.qkv]
    return Layer(
        qkv=Linear(torch.cat([each.weight for each in qkv]), torch.cat([each.bias for each in qkv])),
        attention_output=linear(family.attention_output),
        attention_norm=norm(family.attention_norm),
        intermediate=linear(family.intermediate, activation),
        output=linear(family.output),
        output_norm=norm(family.output_norm),
    )


# -- the forward -----------------------------------------------------------------------------------------------------


def encode(network: Network, tokens: PackedTokens, first_token_only: bool = False) -> torch.Tensor:
    """Run the encoder on a packed batch.

    Args:
        network: what to compute with.
        tokens: the batch.
        first_token_only: return only each sentence's first row, (B, D). The last layer then computes its output
            for these rows alone, which spares most of that layer: exact, and what cls pooling needs.

    Returns:
        The last layer's output, (N, D) or (B, D).
    """
    hidden, bias_HTT = network.embed(tokens), network.bias(tokens)
    for number, layer in enumerate(network.layers, start=1):
        rows = tokens.of_first_tokens if first_token_only and number == len(network.layers) else tokens
        hidden = run_layer(layer, hidden, bias_HTT, tokens, rows, network)
    return hidden


def run_layer(
    layer: Layer,
    hidden: torch.Tensor,
    bias_HTT: torch.Tensor | None,
    tokens: PackedTokens,
    rows: PackedTokens,
    network: Network,
) -> torch.Tensor:
    """One post-norm transformer layer (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): attention, then MLP.

    Returns the rows of `rows` only: (N, D) or (B, D).
    """
    qkv_N3HE = layer.qkv(hidden).view(-1, 3, network.heads, hidden.shape[1] // network.heads)
    context = attention(qkv_N3HE, tokens, rows, network.dropout, bias_HTT, network.alike)
    if rows is not tokens:
        hidden = hidden.index_select(0, tokens.first_rows)
    hidden = layer.attention_norm(layer.attention_output(context.flatten(1), hidden, network.dropout))
    return layer.output_norm(layer.output(layer.intermediate(hidden), hidden, network.dropout))


class DistilledBert(nn.Module):
    """An encoder with our own forward; the modules, their tensor names and the config are transformers'.

    The pooler is kept where the teacher has one, unused and untrained, so that what is saved loads everywhere without a
    missing tensor.

    Args:
        config: of one of FAMILIES; the weights are random.
        add_pooling_layer: whether there is a pooler, where the family has one.
    """

    def __init__(self, config: PretrainedConfig, add_pooling_layer: bool = False) -> None:
        super().__init__()
        self.config: Any = config
        self.family = FAMILIES[config.model_type]
        published = self.family.build(config, add_pooling_layer)
        for name, module in published.named_children():
            self.add_module(name, module)
        self.embeddings: Any
        for name, _ in list(self.embeddings.named_buffers()):  # what its own forward needs
            delattr(self.embeddings, name)
        self.pooler: Any = getattr(published, "pooler", None)
        if self.pooler is not None:
            self.pooler.requires_grad_(False)
        padding = self.embeddings.position_embeddings.padding_idx
        self.first_position = 0 if padding is None else padding + 1  # RoBERTa and its kin keep a place for padding
        self.dropout = 0.0  # probability, of attention weights too; acts in training mode only

    def published(self) -> PreTrainedModel:
        """transformers' own model with the same weights, in evaluation mode."""
        model = self.family.build(self.config, self.pooler is not None)
        model.load_state_dict(self.state_dict())
        return model.eval()

    def keep_layers(self, layers: Sequence[int]) -> "DistilledBert":
        """A new DistilledBert with copies of these layers (counted from 0) and of all that is around them."""
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = len(layers)
        student = DistilledBert(config, add_pooling_layer=self.pooler is not None)
        weights, prefix = self.state_dict(), f"{self.family.layers}."
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
        for new, old in enumerate(layers):
            old_prefix = f"{prefix}{old}."
            kept |= {
                f"{prefix}{new}.{name.removeprefix(old_prefix)}": tensor
                for name, tensor in weights.items()
                if name.startswith(old_prefix)
            }
        student.load_state_dict(kept)
        return student.to(self.device)

    @property
    def device(self) -> torch.device:
        return self.embeddings.word_embeddings.weight.device

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence that there are positions for."""
        return self.config.max_position_embeddings - self.first_position

    @property
    def activation(self) -> str:
        """The name of what follows the intermediate product."""
        return getattr(self.config, self.family.activation)

    def network(self) -> Network:
        """What the forward computes with, made of the weights as they are now."""
        modules: Any = self.get_submodule(self.family.layers)
        layers = [layer_of(module, self.family, self.activation) for module in modules]
        dropout = self.dropout if self.training else 0.0
        return Network(self.embed_tokens, self.position_bias, layers, self.config.num_attention_heads, dropout)

    def embed_tokens(self, tokens: PackedTokens) -> torch.Tensor:
        """Word, position and, where there are any, segment embeddings, summed and normalised: (N, D)."""
        tables = self.embeddings
        words_ND = tokens.word_vectors
        if words_ND is None:
            words_ND = tables.word_embeddings(tokens.input_ids)
        if hasattr(tables, "token_type_embeddings"):
            segments = tables.token_type_embeddings.weight
            words_ND = words_ND + (segments[0] if tokens.token_type_ids is None else segments[tokens.token_type_ids])
        summed_ND = words_ND + tables.position_embeddings(tokens.positions + self.first_position)
        return F.dropout(tables.LayerNorm(summed_ND), self.dropout, self.training)

    def position_bias(self, tokens: PackedTokens) -> torch.Tensor | None:
        """What the family adds to the scores of all layers' attention, by query and key: (H, longest, longest)."""
        if not self.family.position_bias:
            return None
        table: Any = self.get_submodule(self.family.position_bias)  # (buckets, H)
        buckets_TT = position_buckets(int(tokens.lengths[-1]), len(table.weight), self.device)
        return table(buckets_TT).permute(2, 0, 1)

    def encode_packed(self, tokens: PackedTokens, first_token_only: bool = False) -> torch.Tensor:
        """The last layer's output for a packed batch; see `encode`."""
        return encode(self.network(), tokens, first_token_only)

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

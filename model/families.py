"""Which architectures the network computes, and where each keeps its parts.

All are BERT's encoder. They differ in the names of their modules, in the number of the first position, in whether they
have segments, and MPNet in a bias that is added to the attention scores.
"""

import math
from dataclasses import dataclass, replace

import torch
from transformers import (
    BertModel,
    DistilBertModel,
    MPNetModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaModel,
    XLMRobertaModel,
)

LARGEST_DISTANCE = 128  # in tokens, from which on all share a bucket of the bias


@dataclass(frozen=True)
class Family:
    """One architecture of the field.

    Attributes:
        model: transformers' class, whose modules and tensor names a student keeps.
        layers: the module that is the list of layers. The rest are modules within a layer:
        qkv: queries, keys, values.
        attention_output, attention_norm, intermediate, output, output_norm: as in Layer.
        inner_size, activation: the config's fields for the width of `intermediate` and what follows it.
        segments: whether `token_type_ids` tell a first text from a second. RoBERTa has the table, of one row.
        position_bias: the module with the bias of attention by relative position, if there is one.
        has_pooler: whether the class takes `add_pooling_layer`.
    """

    model: type[PreTrainedModel]
    layers: str = "encoder.layer"
    qkv: tuple[str, str, str] = ("attention.self.query", "attention.self.key", "attention.self.value")
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    intermediate: str = "intermediate.dense"
    output: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    inner_size: str = "intermediate_size"
    activation: str = "hidden_act"
    segments: bool = False
    position_bias: str = ""
    has_pooler: bool = True

    def build(self, config: PretrainedConfig, add_pooling_layer: bool) -> PreTrainedModel:
        """transformers' model of this config, with random weights."""
        return self.model(config, **({"add_pooling_layer": add_pooling_layer} if self.has_pooler else {}))


BERT = Family(BertModel, segments=True)
FAMILIES = {  # by the model_type of config.json
    "bert": BERT,
    "roberta": replace(BERT, model=RobertaModel, segments=False),
    "xlm-roberta": replace(BERT, model=XLMRobertaModel, segments=False),
    "mpnet": replace(
        BERT,
        model=MPNetModel,
        segments=False,
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_output="attention.attn.o",
        attention_norm="attention.LayerNorm",
        position_bias="encoder.relative_attention_bias",
    ),
    "distilbert": Family(
        DistilBertModel,
        layers="transformer.layer",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        intermediate="ffn.lin1",
        output="ffn.lin2",
        output_norm="output_layer_norm",
        inner_size="hidden_dim",
        activation="activation",
        has_pooler=False,
    ),
}
PREFIXES = sorted({f"{family.model.base_model_prefix}." for family in FAMILIES.values()})  # of names in weight files


def position_buckets(longest: int, buckets: int, device: torch.device) -> torch.Tensor:
    """The bucket of the bias for each pair of query and key positions: (longest, longest).

    Half of the buckets are for keys before the query and half for those behind it; near distances have one each, far
    ones share some on a logarithmic scale.

    Source: Raffel et al., 2020 (https://arxiv.org/abs/1910.10683), as MPNet has it (Song et al., 2020,
    https://arxiv.org/abs/2004.09297).
    """
    positions = torch.arange(longest, device=device)
    distances = positions[:, None] - positions[None, :]
    half = buckets // 2
    near = half // 2
    far = near + (
        (distances.abs().float() / near).log() / math.log(LARGEST_DISTANCE / near) * (half - near)
    ).long().clamp(max=half - 1 - near)  # fmt: skip
    return (distances < 0) * half + torch.where(distances.abs() < near, distances.abs(), far)

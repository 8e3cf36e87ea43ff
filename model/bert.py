"""DistilledBert and the other architectures: transformers' encoders, with a forward over packed tokens added.

They are transformers' own classes in everything else: `from_pretrained`, `save_pretrained`, tensor names, `isinstance`.
All are BERT's encoder; they differ in the names of their modules, in the number of the first position, in whether they
have segments, and MPNet in a bias that is added to the attention scores. To add an architecture, add a class here and
its line in ARCHITECTURES.
"""

import math
from typing import Any

import torch
from transformers import BertModel, DistilBertConfig, DistilBertModel, MPNetModel, RobertaModel, XLMRobertaModel

from shortstack.model.network import PackedForward
from shortstack.model.tokens import PackedTokens

LARGEST_DISTANCE = 128  # tokens; from this distance on, all share one bucket of MPNet's bias


class DistilledBert(PackedForward, BertModel):
    segments = True


class DistilledRoberta(PackedForward, RobertaModel):
    pass


class DistilledXLMRoberta(PackedForward, XLMRobertaModel):
    pass


class DistilledMPNet(PackedForward, MPNetModel):
    """All its layers add the same bias, which depends on the relative position, to their attention scores."""

    def attention_of(self, module: Any) -> tuple[Any, ...]:
        attend = module.attention.attn
        return attend.q, attend.k, attend.v, attend.o, module.attention.LayerNorm

    def position_bias(self, tokens: PackedTokens) -> torch.Tensor:
        table = self.encoder.relative_attention_bias  # (buckets, H)
        return table(position_buckets(tokens.longest, len(table.weight), table.weight.device)).permute(2, 0, 1)


class DistilledDistilBert(PackedForward, DistilBertModel):
    """It names almost every module differently, and has no pooler."""

    inner_size, activation = "hidden_dim", "activation"

    def __init__(self, config: DistilBertConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config)

    @property
    def encoder(self) -> Any:  # type: ignore[override]
        return self.transformer

    def attention_of(self, module: Any) -> tuple[Any, ...]:
        attend = module.attention
        return attend.q_lin, attend.k_lin, attend.v_lin, attend.out_lin, module.sa_layer_norm

    def mlp_of(self, module: Any) -> tuple[Any, ...]:
        return module.ffn.lin1, module.ffn.lin2, module.output_layer_norm


ARCHITECTURES: dict[str, Any] = {  # by the model_type of config.json
    "bert": DistilledBert,
    "roberta": DistilledRoberta,
    "xlm-roberta": DistilledXLMRoberta,
    "mpnet": DistilledMPNet,
    "distilbert": DistilledDistilBert,
}


def position_buckets(longest: int, buckets: int, device: torch.device) -> torch.Tensor:
    """The bucket of MPNet's bias for each pair of query and key positions: (longest, longest).

    Half of the buckets are for keys before the query and half for keys after it. Every short distance has its own
    bucket; long distances share buckets on a logarithmic scale.

    Source: Raffel et al., 2020 (https://arxiv.org/abs/1910.10683), as used in MPNet (Song et al., 2020,
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

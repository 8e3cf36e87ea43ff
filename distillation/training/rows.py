"""The token embedding table, trained a few rows a step.

A batch uses about a thousand of the table's tens of thousands of rows. A dense gradient, its clipping and AdamW would
still go through all rows in every step, which in a small student are half of the weights. Instead the rows of the batch
are taken out, trained as a small dense matrix, and put back.

Shapes: V tokens in the table, U distinct tokens of a batch, D dimensions.
"""

import numpy as np
import torch
from torch import nn

from shortstack.distillation.training.flat import FlatAdamW
from shortstack.model import PackedTokens
from shortstack.model.tokens import Tokenized, to_device


class BatchRows:
    """The rows of the table that a batch needs, as a leaf tensor that collects their gradient.

    Attributes:
        ids: numbers of the distinct tokens of the whole batch over all ranks, ascending: (U,) int64.
        vectors: their vectors, (U, D) fp32, with `.grad` after a backward pass.
    """

    def __init__(self, table: nn.Parameter, sentences: Tokenized) -> None:
        tokens, self._index_of = distinct_tokens(sentences, len(table))
        self._hold(table, to_device([tokens], table.device)[0])

    def _hold(self, table: nn.Parameter, ids: torch.Tensor) -> None:
        self.table, self.ids = table, ids.long()
        self.vectors = table.detach()[self.ids].requires_grad_()

    @classmethod
    def of_ids(cls, table: nn.Parameter, ids: torch.Tensor) -> "BatchRows":
        """Rows by numbers that are on the table's device; `of` and `pack` need the tokens on the host instead."""
        rows = cls.__new__(cls)
        rows._hold(table, ids)
        return rows

    def of(self, sentences: Tokenized) -> torch.Tensor:
        """Token vectors (N, D) of a part of the batch, sentences end to end."""
        (indices,) = to_device([self._index_of[sentences.ids]], self.table.device)
        return nn.functional.embedding(indices, self.vectors)

    def pack(self, sentences: Tokenized) -> PackedTokens:
        """A part of the batch as the network reads it, its token vectors taken from these rows."""
        tokens = PackedTokens.pack(sentences, self.table.device)
        tokens.word_vectors = self.of(sentences)
        return tokens

    @torch.no_grad()
    def step(
        self, optimizer: FlatAdamW | torch.optim.Optimizer, skipped: torch.Tensor, count: torch.Tensor | None = None
    ) -> None:
        """One AdamW step on these rows, with the optimizer's settings; `optimizer` also keeps the table's state.

        A row's moments decay only when its token occurs, and its bias correction counts its own steps.

        Args:
            optimizer: gives learning rate, betas, eps and weight decay.
            skipped: () bool on the table's device; if it is true, nothing changes.
            count: only the first so many rows change, () on the device; None for all.

        Source: Loshchilov and Hutter, 2017 (https://arxiv.org/abs/1711.05101), applied lazily as in torch's SparseAdam.
        """
        group = optimizer.param_groups[0]
        rate, (beta1, beta2), eps, decay = (group[key] for key in ("lr", "betas", "eps", "weight_decay"))
        state = optimizer.state[self.table]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(self.table), torch.zeros_like(self.table)
            state["step"] = torch.zeros(len(self.table), device=self.table.device)
        if count is not None:
            skipped = skipped | (torch.arange(len(self.ids), device=count.device) >= count)  # (U,)
        gradient = self.vectors.grad
        assert gradient is not None
        before = {key: value[self.ids] for key, value in state.items()}
        steps = before["step"] + 1  # (U,)
        mean = before["exp_avg"].lerp(gradient, 1 - beta1)  # (U, D)
        square = (before["exp_avg_sq"] * beta2).addcmul_(gradient, gradient, value=1 - beta2)

        exponents = steps.double()[:, None]  # in fp32 the first steps' 1 - 0.999 would be exact to five digits only
        correction1, correction2 = ((1 - beta**exponents).float() for beta in (beta1, beta2))
        update = (mean / correction1) / ((square / correction2).sqrt_().add_(eps))
        vectors = self.vectors.detach() * (1 - rate * decay) - rate * update
        self.table[self.ids] = torch.where(skipped[..., None], self.vectors.detach(), vectors)
        for key, after in (("step", steps), ("exp_avg", mean), ("exp_avg_sq", square)):
            skipped_of_key = skipped if after.dim() == 1 else skipped[..., None]
            state[key][self.ids] = torch.where(skipped_of_key, before[key], after)


def distinct_tokens(sentences: Tokenized, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct tokens, ascending, (U,), and the place of every token of the vocabulary among them, if it occurs."""
    occurs = np.zeros(vocabulary, dtype=bool)
    occurs[sentences.ids] = True
    tokens = occurs.nonzero()[0]
    index_of = np.zeros(vocabulary, dtype=np.int32)
    index_of[tokens] = np.arange(len(tokens))
    return tokens, index_of

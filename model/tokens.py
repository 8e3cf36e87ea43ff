"""A batch's tokens end to end: nothing downstream ever computes padding.

Shapes: B sentences, N tokens of the whole batch, D hidden dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F


@dataclass
class PackedTokens:
    """The tokens of B sentences end to end, sentences in ascending order of length.

    Attributes:
        input_ids: token numbers, (N,) int64.
        positions: each token's index in its sentence, (N,) int64.
        lengths: tokens of each sentence, (B,) int64, ascending, on the CPU.
        token_type_ids: segment numbers, (N,) int64, or None for all 0.
        word_vectors: (N, D) vectors to use in place of the word embedding table's, or None.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    lengths: torch.Tensor
    token_type_ids: torch.Tensor | None = None
    word_vectors: torch.Tensor | None = None

    @classmethod
    def pack(cls, sentences: Sequence[np.ndarray], device: torch.device | str = "cpu") -> "PackedTokens":
        """Lay token lists end to end; they must come in ascending order of length."""
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        ids = torch.from_numpy(np.concatenate(sentences).astype(np.int64))
        packed = cls(ids, positions_of(lengths), lengths)
        if torch.device(device).type == "cuda":  # pinned memory lets the copy run while the GPU computes
            packed.input_ids = packed.input_ids.pin_memory().to(device, non_blocking=True)
            packed.positions = packed.positions.pin_memory().to(device, non_blocking=True)
        return packed

    @cached_property
    def groups(self) -> list[tuple[int, int, int]]:
        """(first token, number of sentences, tokens a sentence) for each run of equally long sentences."""
        lengths, counts = torch.unique_consecutive(self.lengths, return_counts=True)
        groups, start = [], 0
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
            groups.append((start, count, length))
            start += count * length
        return groups

    @cached_property
    def boundaries(self) -> torch.Tensor:
        """Where each sentence starts, and the end of the last: (B + 1,) int32 on the tokens' device."""
        return F.pad(self.lengths.cumsum(0), (1, 0)).to(self.input_ids.device, torch.int32)

    @cached_property
    def of_first_tokens(self) -> "PackedTokens":
        """The same sentences cut to their first token: what cls pooling reads."""
        first = self.boundaries[:-1].long()
        return PackedTokens(self.input_ids[first], self.positions[first], torch.ones_like(self.lengths))


def positions_of(lengths: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, ... restarting at each sentence: (B,) lengths to (N,) positions."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)

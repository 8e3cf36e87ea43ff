"""Tokens of many sentences end to end: in memory as `Tokenized`, in a batch as `PackedTokens`. There is no padding.

Shapes: n sentences in memory, B sentences of a batch, N tokens of them all, D hidden dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

TILE = 64  # tokens that attention computes at a time on a GPU, of whole sentences


class Tokenized:
    """n sentences' token numbers in one array, from which any of them are gathered in one pass.

    Attributes:
        ids: token numbers, sentences end to end, (N,) int32.
        lengths: tokens of each sentence, (n,) int64.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        self.ids, self.lengths = ids, lengths.astype(np.int64)
        self.starts = self.lengths.cumsum() - self.lengths

    @classmethod
    def of(cls, sentences: Sequence[np.ndarray]) -> "Tokenized":
        """From the token numbers of sentences, one array (T,) each."""
        ids = np.concatenate(sentences) if len(sentences) else np.empty(0)
        return cls(ids.astype(np.int32, copy=False), np.array([len(tokens) for tokens in sentences], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Tokenized"]) -> "Tokenized":
        """The sentences of several, one after another."""
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate([part.lengths for part in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Token numbers of one sentence, (T,)."""
        start = self.starts[index]
        return self.ids[start : start + self.lengths[index]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: np.ndarray) -> "Tokenized":
        """The sentences at these indices, in this order."""
        lengths = self.lengths[indices]
        # from a token's index in the result to its index here
        shift = self.starts[indices] - (lengths.cumsum() - lengths)
        return Tokenized(self.ids[np.arange(lengths.sum()) + np.repeat(shift, lengths)], lengths)


@dataclass
class PackedTokens:
    """The tokens of B sentences end to end, sentences in ascending order of length.

    Attributes:
        input_ids: token numbers, (N,) int32 or int64.
        positions: each token's index in its sentence, (N,) int32 or int64.
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
    def pack(cls, sentences: Tokenized, device: torch.device | str = "cpu") -> "PackedTokens":
        """Lay sentences end to end; they must come in ascending order of length.

        Everything that the forward pass reads of a batch is made here, on the host, and goes to the device in one copy:
        nothing later has to wait for the device.
        """
        if len(sentences) == 1 and torch.device(device).type == "cpu":
            return cls.of_one(sentences.ids)
        ids, lengths, starts = sentences.ids, sentences.lengths, sentences.starts
        assert (lengths[1:] >= lengths[:-1]).all(), "sentences must come in ascending order of length"
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)
        first = np.arange(len(lengths) + 1)
        parts = (ids, positions, np.append(starts, len(ids)), ids[starts], positions[starts], first)
        input_ids, positions_N, cu_seqlens, first_ids, first_positions, first_cu_seqlens = to_device(parts, device)
        packed = cls(input_ids, positions_N, torch.from_numpy(lengths))
        packed.cu_seqlens = cu_seqlens
        packed.of_first_tokens = cls(first_ids, first_positions, torch.ones(len(lengths), dtype=torch.int64))
        packed.of_first_tokens.cu_seqlens = first_cu_seqlens
        packed.of_first_tokens.groups = [(0, len(lengths), 1)]
        return packed

    @classmethod
    def of_one(cls, ids: np.ndarray) -> "PackedTokens":
        """One sentence, on the CPU: a query is so short that what only batches need would take noticeable time."""
        packed = cls(torch.from_numpy(ids), torch.arange(len(ids)), torch.tensor([len(ids)]))
        packed.groups = [(0, 1, len(ids))]
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
    def longest(self) -> int:
        """Tokens of the longest sentence."""
        return int(self.lengths[-1])

    @cached_property
    def cu_seqlens(self) -> torch.Tensor:
        """Where each sentence starts, and the end of the last: (B + 1,) int32 on the tokens' device."""
        ends = self.lengths.cumsum(0)
        return torch.cat([ends.new_zeros(1), ends]).to(self.input_ids.device, torch.int32)

    @cached_property
    def segments(self) -> torch.Tensor:
        """The number of each token's sentence: (N,) int32 on the tokens' device."""
        return torch.repeat_interleave(self.cu_seqlens.diff(), output_size=len(self.positions)).int()

    @cached_property
    def tiles(self) -> torch.Tensor:
        """`tile_bounds` on the tokens' device."""
        return to_device([tile_bounds(self.lengths.numpy())], self.input_ids.device)[0]

    @property
    def first_rows(self) -> torch.Tensor:
        """The row of each sentence's first token, (B,) int32 on the tokens' device."""
        return self.cu_seqlens[:-1]

    @cached_property
    def of_first_tokens(self) -> "PackedTokens":
        """The same sentences cut to their first token: what cls pooling reads."""
        ids, positions = (tensor.index_select(0, self.first_rows) for tensor in (self.input_ids, self.positions))
        return PackedTokens(ids, positions, torch.ones_like(self.lengths))


def tile_bounds(lengths: np.ndarray) -> np.ndarray:
    """Where tiles of whole sentences begin, and the end of the last: as many sentences each as fit into TILE tokens.

    Args:
        lengths: tokens of each sentence, (B,), at most TILE each.
    """
    ends, bounds = lengths.cumsum(), [0]
    while bounds[-1] < ends[-1]:
        bounds.append(int(ends[ends.searchsorted(bounds[-1] + TILE, side="right") - 1]))
    return np.array(bounds, dtype=np.int32)


def to_device(arrays: Sequence[np.ndarray], device: torch.device | str) -> tuple[torch.Tensor, ...]:
    """Arrays of whole numbers as int32 tensors on the device, all in one copy that the host does not wait for."""
    together = torch.from_numpy(np.concatenate(arrays, dtype=np.int32, casting="same_kind"))
    return send(together, device).split([len(array) for array in arrays])


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy a tensor to the device. From pinned memory a GPU fetches it while the host goes on."""
    if torch.device(device).type in ("cpu", "mps"):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Start to copy a tensor to the CPU; the function returned waits for it. The host does not wait before."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    copied = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> torch.Tensor:
        copied.synchronize()
        return copy

    return wait

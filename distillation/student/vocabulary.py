"""A smaller vocabulary: pieces that the text does not use are removed from the tokenizer and the token table.

A piece is what a tokenizer cuts words into. In a small student the table of their vectors is half of the weights, in a
multilingual one with 250,000 pieces nearly all of them. A text without a removed piece keeps exactly the same tokens,
and so exactly the same embedding. In other texts a removed piece is split into shorter ones.

Shapes: V pieces of the teacher, K pieces kept.
"""

import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from shortstack.distillation.data.corpus import Corpus
from shortstack.distillation.data.labels import Retokenize, sentences_of
from shortstack.distillation.recipe import parse_vocabulary
from shortstack.model import Embedder
from shortstack.model.directory import read_tokenizer
from shortstack.model.files import InputError, write_json
from shortstack.model.tokens import Tokenized

KINDS = ("WordPiece", "BPE", "Unigram")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # what a tokenizer with byte_fallback cuts an unknown character into


# -- which pieces ----------------------------------------------------------------------------------------------------


class Pieces:
    """The pieces of an embedder's tokenizer, and which pieces need which others.

    Attributes:
        names: the text of every piece by its number, V of them; unused numbers are missing.
        required: numbers of the pieces that must stay.

    Raises:
        InputError: a kind of tokenizer other than KINDS.
    """

    def __init__(self, embedder: Embedder) -> None:
        tokenizer = embedder.tokenizer
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        self.model: dict[str, Any] = parts["model"]
        kind = self.model["type"]
        if kind not in KINDS:
            raise InputError(
                f"vocabulary: a tokenizer of kind {kind} can't be cut ({', '.join(KINDS)} can); leave vocabulary empty"
            )
        self.prefix = self.model.get("continuing_subword_prefix") or ""
        self.suffix = self.model.get("end_of_word_suffix") or ""
        self.numbers: dict[str, int] = tokenizer.get_vocab()
        self.names = {number: name for name, number in self.numbers.items()}
        self.merges: dict[str, list[str]] = {}  # of BPE: the two parts of every merge that makes a piece
        for left, right in merge_pairs(self.model):
            self.merges.setdefault(left + right[len(self.prefix) :], []).extend((left, right))
        self.required = self.with_needs(self.unconditional(embedder, parts))

    def unconditional(self, embedder: Embedder, parts: dict[str, Any]) -> Iterator[int]:
        """Numbers of the pieces that must stay, whatever the text uses, apart from those that these need in turn."""
        added = {token["content"] for token in parts["added_tokens"]} | set(embedder.tokenizer.all_special_tokens)
        for name, number in self.numbers.items():
            letters = self.letters(name)
            # A piece with a letter that is not a piece itself could not be split into known ones.
            if (
                len(letters) == 1
                or name in added
                or BYTE.fullmatch(name)
                or any(x not in self.numbers for x in letters)
            ):
                yield number
        if self.model["type"] == "Unigram":  # the cost of an unknown letter is counted from the least likely piece
            scores = [score for _, score in self.model["vocab"]]
            yield scores.index(min(scores))
        # RoBERTa counts positions from the number of its padding piece, so the pieces before it must stay.
        yield from range(1 + (embedder.bert.config.pad_token_id or 0))
        for tokens in embedder.tokenize(list(embedder.settings.prompts.values())):
            yield from tokens.tolist()

    def letters(self, name: str) -> list[str]:
        """The single-character pieces that a piece can be split into: "##ing" into "##i", "##n", "##g"."""
        if self.model["type"] == "Unigram":
            return list(name)
        inside = bool(self.prefix) and name.startswith(self.prefix)
        ends = bool(self.suffix) and name.endswith(self.suffix)
        text = name[len(self.prefix) if inside else 0 : len(name) - (len(self.suffix) if ends else 0)]
        letters = [self.prefix + letter if inside or index else letter for index, letter in enumerate(text)]
        if ends and letters:
            letters[-1] += self.suffix
        return letters

    def with_needs(self, numbers: Iterable[int], known: Collection[int] = ()) -> set[int]:
        """These pieces and, by recursion, all pieces that they are merged from, without those in `known`."""
        needed: set[int] = set()
        todo = list(numbers)
        while todo:
            number = todo.pop()
            if number not in needed and number not in known:
                needed.add(number)
                todo += [self.numbers[part] for part in self.merges.get(self.names.get(number, ""), ())]
        return needed

    def choose(self, counts_V: np.ndarray, wanted: int | float) -> np.ndarray:
        """Numbers of the required pieces and of those that the text uses most, ascending, (K,).

        Args:
            counts_V: how often the text uses a piece.
            wanted: the largest number of pieces; or, as a float, the share of the text's tokens that they must cover.
        """
        kept = set(self.required)
        covered = int(counts_V[list(kept)].sum())
        enough = wanted * counts_V.sum()
        for number in np.argsort(-counts_V, kind="stable").tolist():
            if counts_V[number] == 0 or (isinstance(wanted, float) and covered >= enough):
                break
            more = self.with_needs([number], kept)
            if isinstance(wanted, float) or len(kept) + len(more) <= wanted:
                kept |= more
                covered += int(counts_V[list(more)].sum())
        return np.array(sorted(kept))


def merge_pairs(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The merges of a BPE model in their order; nothing for other models."""
    for merge in model.get("merges", []):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def check_vocabulary(teacher: Embedder, text: int | str) -> None:
    """Raise InputError unless the teacher's vocabulary can be cut as the recipe asks."""
    wanted, pieces, total = parse_vocabulary(text), Pieces(teacher), teacher.bert.config.vocab_size
    if isinstance(wanted, int) and not len(pieces.required) <= wanted < total:
        raise InputError(
            f"vocabulary: {wanted:,} pieces can't be kept of this teacher's {total:,}; give a number below that and "
            f"of at least {len(pieces.required):,}: its special and single-character pieces and what they need"
        )


# -- the cut ---------------------------------------------------------------------------------------------------------


def cut_vocabulary(student: Embedder, counts_V: np.ndarray, text: int | str) -> tuple[Embedder, dict[str, Any]]:
    """The student with a smaller vocabulary, chosen by `Pieces.choose`, and what was cut, for data.json.

    The student that is given loses the rest of its token table; `text` is the recipe's field.
    """
    kept = Pieces(student).choose(counts_V, parse_vocabulary(text))
    total, dimensions = student.bert.embeddings.word_embeddings.weight.shape
    cut = {
        "pieces": len(kept),
        "of": total,
        "share_of_tokens": float(counts_V[kept].sum() / counts_V.sum()),
        "megabytes_saved": (total - len(kept)) * dimensions * 4 / 1e6,
    }
    return keep_pieces(student, kept), cut


def keep_pieces(student: Embedder, kept: np.ndarray) -> Embedder:
    """The student with these pieces only, (K,) ascending numbers, renumbered from 0."""
    bert = student.bert
    new = {old: number for number, old in enumerate(kept.tolist())}
    table = bert.embeddings.word_embeddings
    vectors = table.weight.detach()[torch.from_numpy(kept).to(table.weight.device)].clone()
    bert.config.vocab_size = len(kept)
    for key, value in bert.config.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int):
            setattr(bert.config, key, new.get(value))
    bert.embeddings.word_embeddings = nn.Embedding.from_pretrained(
        vectors, freeze=False, padding_idx=bert.config.pad_token_id
    )
    tokenizer = smaller_tokenizer(student.tokenizer, new)
    smaller = Embedder(bert, tokenizer, student.settings, student.dense, student.dense_activation)
    return smaller.eval().to(student.device)


def smaller_tokenizer(tokenizer: PreTrainedTokenizerFast, new: dict[int, int]) -> PreTrainedTokenizerFast:
    """The tokenizer with the pieces that are keys of `new` only, under their new numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        parts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for path in folder.iterdir():  # other forms of the whole vocabulary
            if path.name not in ("tokenizer.json", "tokenizer_config.json"):
                path.unlink()
        model = parts["model"]
        if model["type"] == "Unigram":
            model["vocab"] = [piece for old, piece in enumerate(model["vocab"]) if old in new]
            model["unk_id"] = new.get(model["unk_id"])
        else:
            model["vocab"] = {piece: new[old] for piece, old in model["vocab"].items() if old in new}
        if "merges" in model:
            known, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
            model["merges"] = [
                (left, right)
                for left, right in merge_pairs(model)
                if left in known and right in known and left + right[len(prefix) :] in known
            ]
        for token in parts["added_tokens"]:
            token["id"] = new[token["id"]]
        renumber_processor(parts["post_processor"], new)
        if parts.get("padding"):
            parts["padding"]["pad_id"] = new[parts["padding"]["pad_id"]]
        write_json(folder / "tokenizer.json", parts)
        return read_tokenizer(folder, len(new))


def renumber_processor(processor: dict[str, Any] | None, new: dict[int, int]) -> None:
    """Change the numbers of [CLS] and the like in a post-processor of tokenizer.json, in place."""
    for part in (processor or {}).get("processors", [processor or {}]):
        for key in ("sep", "cls"):  # of BertProcessing and RobertaProcessing: [text, number]
            if key in part:
                part[key] = [part[key][0], new[part[key][1]]]
        special = part.get("special_tokens")
        for token in special.values() if isinstance(special, dict) else ():
            token["ids"] = [new[number] for number in token["ids"]]


# -- the student's tokens --------------------------------------------------------------------------------------------


def is_cut_of(student: Embedder, teacher: Embedder) -> bool:
    """Whether the student's tokenizer is the teacher's, with all of its pieces or fewer."""
    ours, theirs = (json.loads(model.tokenizer.backend_tokenizer.to_str()) for model in (student, teacher))
    same = all(ours[key] == theirs[key] for key in ("normalizer", "pre_tokenizer"))
    same = same and ours["model"]["type"] == theirs["model"]["type"]
    return same and set(student.tokenizer.get_vocab()) <= set(teacher.tokenizer.get_vocab())


def retokenizer(teacher: Embedder, student: Embedder, corpus: Corpus, shard_size: int) -> Retokenize:
    """A function that turns the teacher's tokens of a shard of labels into those of a student with fewer pieces.

    A sentence of kept pieces is only renumbered. A sentence with a removed piece is tokenised again as a whole, since
    the letters beside that piece may now be split in another way, too.
    """
    numbers = student.tokenizer.get_vocab()
    new_V = np.full(teacher.bert.config.vocab_size, -1, dtype=np.int32)
    for name, number in teacher.tokenizer.get_vocab().items():
        new_V[number] = numbers.get(name, -1)

    def retokenize(shard: int | str, tokens: Tokenized) -> Tokenized:
        renumbered = Tokenized(new_V[tokens.ids], tokens.lengths)
        cut = np.flatnonzero(renumbered.ids < 0)
        if len(cut) == 0:
            return renumbered
        again = np.unique(np.searchsorted(renumbered.starts, cut, side="right") - 1).tolist()
        texts, sentences = sentences_of(shard, corpus, teacher, shard_size), list(renumbered)
        for index, sentence in zip(again, student.tokenize([texts[index] for index in again]), strict=True):
            sentences[index] = sentence
        return Tokenized.of(sentences)

    return retokenize
